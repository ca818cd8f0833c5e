"""Putting what was made on the Hub."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class PublishOptions(Options):
    """Options of ``mmalign publish``."""

    folder: Path = field(metadata={"positional": True})
    """a trained checkpoint or adapter, scored pairs, or a folder of report pages"""
    repo: str = field(metadata={"positional": True})
    """OWNER/NAME on the Hub; made where it is missing, a model, data set or static Space by what the folder holds"""
    private: bool = False
    """make it private; a repository that is there stays as it is"""
    dry_run: bool = False
    """list what would go, and send nothing"""
    base_model: str | None = None
    """hub id of the model that an adapter or checkpoint derives from, where the folder names one of this machine"""
    license: str | None = None
    """licence of scored pairs; that of the set they were made from"""
    message: str = "Upload with mmalign"
    """of the commit"""

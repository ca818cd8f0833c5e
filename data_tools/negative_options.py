"""Options that the builders of negatives share, apart from what they do, so that --help comes at once."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class NegativeOptions(Options):
    """Options of every builder that adds a rejected response to rows with a good one."""

    data: Path = field(metadata={"positional": True})
    """rows with messages, or with prompt and chosen: a file, or a folder of them"""
    out: Path
    """folder of pairs/*.parquet, rejects.jsonl and the work in progress"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
    embed_images: bool = False
    """put images that are paths into the Parquet files as bytes"""
    max_reject_share: float = 0.2
    """stop if more than this share of rows gives no pair"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_no_share("max_reject_share")

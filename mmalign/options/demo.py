"""The demo: where it goes, and how large it is."""

from dataclasses import dataclass
from pathlib import Path

from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Options of ``mmalign demo``."""

    out: Path = Path("runs/demo")
    """folder of everything that is made"""
    seed: int = 0
    """of the world, the models and the data order"""
    smoke: bool = False
    """a few steps on a tiny world: checks the path, shows no effect"""

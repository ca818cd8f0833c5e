"""The cells of the studies on photographs that compare multimodal LLMs over seeds."""

from dataclasses import dataclass
from pathlib import Path

from scripts.studies.study import slug

PREFERENCE, MOD, IMAGE_TERMS = "seeds", "mod", "image_terms"
"""Folders of the studies in the main run's."""


@dataclass(frozen=True)
class Cell:
    """One arm of a seed, in the folder of its study."""

    study: str
    arm: str
    seed: int

    def path(self, out: Path) -> Path:
        """The file of the finished arm."""
        return cells_folder(out, self.study) / str(self.seed) / f"{slug(self.arm)}.json"


def cells_folder(out: Path, study: str) -> Path:
    """Where the finished arms of a study are in the main run's folder."""
    return out / study / "cells"

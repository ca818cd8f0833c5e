"""The cells of the studies on photographs that compare multimodal LLMs over seeds."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.studies.study import AnyCell, run_missing, slug

PREFERENCE, MOD, IMAGE_TERMS, STARTS, OWN_ANSWERS = "seeds", "mod", "image_terms", "starts", "own_answers"
"""Folders of the studies in the main run's."""
FOLDERS = tuple(f"{study}/cells" for study in (PREFERENCE, IMAGE_TERMS, STARTS, OWN_ANSWERS))
"""Of what docs/studies/real.md is made of."""


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


def choose(cells: Sequence[AnyCell], options: argparse.Namespace) -> list[AnyCell]:
    """Leave the cells that ``--only`` names; all where it names none.

    Raises:
        SystemExit: If no cell has a name.
    """
    names = {cell.path(options.out).stem for cell in cells}
    if unknown := sorted({*options.only} - names):
        raise SystemExit(f"--only {' '.join(unknown)}: no such run; there are {', '.join(sorted(names))}")
    return [cell for cell in cells if not options.only or cell.path(options.out).stem in options.only]


def run_chosen(cells: Sequence[AnyCell], run_cell: Callable[[AnyCell, argparse.Namespace], str], options: argparse.Namespace) -> None:
    """Run what is missing of the cells that are chosen, one after the other: each training takes all threads."""
    run_missing(choose(cells, options), partial(run_cell, options=options), options, together=lambda cell: 0)

"""What the study of image terms compares: arms, rows to train on, and the runs that follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmalign.files import read_json
from mmalign.options.rows import Weakening
from scripts.studies.study import best_setting, slug
from scripts.studies.world import object_f1

Rows = Literal["contrast", "pairs"]
"""Pairs with a second image on which the rejected answer is right, or the world's pairs, four fifths of them wrong in an easy way."""

SEARCH_SEED, ROUNDS = 100, ((1,), (2, 3), (4, 5))
STEPS, QUICK_STEPS, SMOKE_STEPS = 150, 60, 3
BETAS, LEARNING_RATES = ("0.3", "1", "0.1"), ("1e-4", "3e-4")
SFT = "sft"


@dataclass(frozen=True)
class Arm:
    """An objective, as the page names it and as ``--objective`` is given it; beta is searched."""

    name: str
    objective: str
    weaken: Weakening = "crop"
    """How its paper makes the weakened image."""
    needs_other: bool = False
    """Whether it trains on contrast rows alone."""
    searched_as: str = ""
    """The arm whose beta and learning rate it takes; its own search, if not given."""
    blind: bool = False
    """Whether it trains on grey pictures."""


DPO = Arm("DPO", "dpo")
ARMS = (
    DPO,
    Arm("mDPO", "mdpo"),
    Arm("S-VCO", "svco", needs_other=True),
    Arm("SymMPO", "symmpo", needs_other=True),
    Arm("DPO + anchor", "dpo,anchor"),
    Arm("CHiP", "chip", weaken="diffusion"),
    Arm("Flex-DPO", "flex_dpo"),
    Arm("DPO on grey pictures", "dpo", searched_as=DPO.name, blind=True),
)
SMOKE = ("DPO", "S-VCO", "CHiP", "DPO on grey pictures")


@dataclass(frozen=True)
class Cell:
    """One run: of the search where it has a beta and a learning rate, else of the comparison with what the search found."""

    arm: Arm
    seed: int
    rows: Rows = "contrast"
    beta: str = ""
    learning_rate: str = ""

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        if self.beta:
            return out / "search" / slug(self.arm.name) / f"{self.beta}_{self.learning_rate}.json"
        return out / "cells" / self.rows / str(self.seed) / f"{slug(self.arm.name)}.json"


@dataclass(frozen=True)
class StartCell:
    """A seed's start, its data, and the start's own numbers."""

    seed: int

    def path(self, out: Path) -> Path:
        """The file of the start's numbers, where the page looks for an arm's."""
        return out / "cells" / "contrast" / str(self.seed) / f"{SFT}.json"


def count_steps(*, quick: bool, smoke: bool) -> int:
    """Count the steps of each training."""
    return SMOKE_STEPS if smoke else QUICK_STEPS if quick else STEPS


def list_arms(*, smoke: bool) -> list[Arm]:
    """List the arms, the most important first."""
    return [arm for arm in ARMS if not smoke or arm.name in SMOKE]


def list_searches(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the runs of all searches, as many for each arm: six, two in the quick form, one in the smoke form."""
    grid = [(beta, rate) for rate in LEARNING_RATES for beta in BETAS][: 1 if smoke else 2 if quick else None]
    searched = [arm for arm in list_arms(smoke=smoke) if not arm.searched_as]
    return [Cell(arm, SEARCH_SEED, beta=beta, learning_rate=rate) for arm in searched for beta, rate in grid]


def list_rounds(*, quick: bool = False, smoke: bool = False) -> list[list[Cell]]:
    """List the comparison's runs by the seeds that are made first; after all seeds on contrast rows those on pairs follow."""
    rounds: Sequence[Sequence[int]] = ROUNDS[:1] if quick or smoke else ROUNDS
    arms = list_arms(smoke=smoke)
    contrast = [[Cell(arm, seed) for seed in seeds for arm in arms] for seeds in rounds]
    pairs = [Cell(arm, seed, "pairs") for seeds in rounds for seed in seeds for arm in arms if not arm.needs_other]
    return contrast if quick else [*contrast, pairs]


def search_score(metrics: dict[str, float]) -> float:
    """What a search goes by: the mean of the captions' object F1 and of contrast pairs with both answers right, in percent."""
    return (object_f1(metrics) + metrics["pairs right"]) / 2


def read_search(arm: Arm, out: Path) -> dict[tuple[str, str], float]:
    """Read the finished runs of an arm's search: (beta, learning rate) -> score, in the order of the grid."""
    cells = [cell for cell in list_searches() if cell.arm.name == (arm.searched_as or arm.name)]
    return {(cell.beta, cell.learning_rate): search_score(read_json(path)) for cell in cells if (path := cell.path(out)).is_file()}


def best_of(arm: Arm, out: Path) -> tuple[str, str]:
    """Return the beta and the learning rate that the search found best; the first of equals in the order of the grid.

    Raises:
        ValueError: If the arm has no finished run of the search.
    """
    return best_setting(read_search(arm, out), arm.searched_as or arm.name, out)

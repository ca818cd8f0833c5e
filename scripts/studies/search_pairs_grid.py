"""What the study of search pairs compares: arms, their data, and the runs that follow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmalign.files import read_json
from scripts.studies.study import SearchedCell, best_setting
from scripts.studies.world import object_f1

Value = Literal["truth", "self"]

SEARCH_SEED, SEEDS = 100, (1, 2, 3, 4, 5)
STEPS, QUICK_STEPS, SMOKE_STEPS = 150, 60, 3
SCENES, QUICK_SCENES, SMOKE_SCENES = 600, 200, 32
BETAS, LEARNING_RATES = ("0.1", "0.3", "1"), ("1e-4", "3e-4")


@dataclass(frozen=True)
class Arm:
    """Pairs and the objective that trains on them."""

    name: str
    value: Value
    objective: str
    searched: bool
    """Whether the pairs are steps of a tree search; else they are the best and the worst of sampled answers."""

    @property
    def data(self) -> str:
        """The folder of its pairs."""
        return f"{'searched' if self.searched else 'sampled'}-{self.value}"


ARMS = (
    Arm("steps, truth", "truth", "step_dpo", searched=True),
    Arm("best of N, truth", "truth", "dpo", searched=False),
    Arm("steps, self", "self", "step_dpo", searched=True),
    Arm("best of N, self", "self", "dpo", searched=False),
    Arm("steps as DPO, truth", "truth", "dpo", searched=True),
)
OTHERS = {"steps, truth": "best of N, truth", "steps, self": "best of N, self", "steps as DPO, truth": "steps, truth"}
"""Arm -> the one that it is compared with."""


class Cell(SearchedCell[Arm]):
    """One run of an arm."""


@dataclass(frozen=True)
class DataCell:
    """A seed's pairs by one value: those of the search, then those of samples with as many tokens."""

    value: Value
    seed: int

    def folder(self, out: Path) -> Path:
        """The folder of the seed."""
        return out / "data" / str(self.seed)

    def path(self, out: Path) -> Path:
        """Tokens and pairs of both."""
        return self.folder(out) / f"{self.value}.json"


def count_steps(*, quick: bool, smoke: bool) -> int:
    """Count the steps of each training."""
    return SMOKE_STEPS if smoke else QUICK_STEPS if quick else STEPS


def count_scenes(*, quick: bool, smoke: bool) -> int:
    """Count the scenes that answers are searched and sampled to."""
    return SMOKE_SCENES if smoke else QUICK_SCENES if quick else SCENES


def list_searches(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the runs of all searches, as many for each arm: six, two in the quick form, one in the smoke form."""
    grid = [(beta, rate) for rate in LEARNING_RATES for beta in BETAS][: 1 if smoke else 2 if quick else None]
    return [Cell(arm, SEARCH_SEED, beta, rate) for arm in ARMS for beta, rate in grid]


def list_cells(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the comparison's runs, seed by seed."""
    return [Cell(arm, seed) for seed in (SEEDS[:1] if quick or smoke else SEEDS) for arm in ARMS]


def read_search(arm: Arm, out: Path) -> dict[tuple[str, str], float]:
    """Read the finished runs of an arm's search: (beta, learning rate) -> object F1, in the order of the grid."""
    cells = [cell for cell in list_searches() if cell.arm == arm]
    return {(cell.beta, cell.learning_rate): object_f1(read_json(path)) for cell in cells if (path := cell.path(out)).is_file()}


def best_of(arm: Arm, out: Path) -> tuple[str, str]:
    """Return the beta and the learning rate that the search found best; the first of equals.

    Raises:
        ValueError: If the arm has no finished run of the search.
    """
    return best_setting(read_search(arm, out), arm.name, out)

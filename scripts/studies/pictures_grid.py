"""What the study of pictures compares: arms, their data, and the runs that follow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmalign.files import read_json
from scripts.studies.study import SearchedCell, best_setting

Data = Literal["chosen", "drawn_pairs", "drawn_lists", "own", "rounds"]
ROUNDS = 3
"""Of the arm whose policy samples anew in each; its steps are those of all of them."""

SEARCH_SEED, SEEDS = 100, (1, 2, 3, 4, 5)
BETAS, LEARNING_RATES = ("0.03", "0.1", "0.3"), ("1e-4", "3e-4")
NO_BETA = "0"


@dataclass(frozen=True)
class Sizes:
    """How long everything takes."""

    drawings: int
    """captions that the start is fine-tuned on"""
    tokenizer_steps: int
    sft_steps: int
    rows: int
    """of an arm's data"""
    steps: int
    """of each arm"""
    held_out: int


FULL = Sizes(16_000, 3_000, 12_000, 3_000, 400, 200)
QUICK = Sizes(4_000, 1_000, 3_000, 600, 100, 100)
SMOKE = Sizes(48, 2, 2, 24, 2, 6)


@dataclass(frozen=True)
class Arm:
    """What trains after the start."""

    name: str
    method: Literal["sft", "preference", "listwise"]
    data: Data
    objective: str = ""


CONTROL = Arm("more training on chosen", "sft", "chosen")
ARMS = (
    CONTROL,
    Arm("dpo", "preference", "drawn_pairs", "dpo"),
    Arm("ddo, own samples", "preference", "own", "ddo"),
    Arm("dno, rounds of own samples", "preference", "rounds", "dno"),
    Arm("rank_dpo on four", "listwise", "drawn_lists", "rank_dpo"),
)


class Cell(SearchedCell[Arm]):
    """One run of an arm."""


def choose_sizes(*, quick: bool, smoke: bool) -> Sizes:
    """The sizes of a form."""
    return SMOKE if smoke else QUICK if quick else FULL


def list_searches(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the runs of all searches: betas by rates for each arm, rates alone for the control, one or two in the smaller forms."""
    cells = []
    for arm in ARMS:
        betas = (NO_BETA,) if arm == CONTROL else BETAS
        grid = [(beta, rate) for rate in LEARNING_RATES for beta in betas][: 1 if smoke else 2 if quick else None]
        cells += [Cell(arm, SEARCH_SEED, beta, rate) for beta, rate in grid]
    return cells


def list_cells(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the comparison's runs, seed by seed."""
    return [Cell(arm, seed) for seed in (SEEDS[:1] if quick or smoke else SEEDS) for arm in ARMS]


def read_search(arm: Arm, out: Path) -> dict[tuple[str, str], float]:
    """Read the finished runs of an arm's search: (beta, learning rate) -> F1 without guidance, in the order of the grid."""
    cells = [cell for cell in list_searches() if cell.arm == arm]
    return {(cell.beta, cell.learning_rate): read_json(path)["f1"] for cell in cells if (path := cell.path(out)).is_file()}


def best_of(arm: Arm, out: Path) -> tuple[str, str]:
    """Return the beta and the learning rate that the search found best; the first of equals.

    Raises:
        ValueError: If the arm has no finished run of the search.
    """
    return best_setting(read_search(arm, out), arm.name, out)

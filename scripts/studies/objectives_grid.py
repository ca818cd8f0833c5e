"""What the objectives study compares: data sets, objectives with the strengths that are tried, and the runs that follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign.files import read_json
from scripts.studies.study import best_setting, slug
from scripts.studies.world import Condition, object_f1

SEARCH_SEED, QUICK_SEEDS, MORE_SEEDS = 100, (1, 2), ((3,), (4, 5))
STEPS, QUICK_STEPS, SMOKE_STEPS = 150, 60, 3
LEARNING_RATES = ("1e-4", "3e-4")
SMOKE = ("dpo", "simpo", "plackett_luce")


@dataclass(frozen=True)
class Data(Condition):
    """How pairs are made, or lists of responses that the start samples."""

    lists: bool = False

    @property
    def heading(self) -> str:
        """The name as the page has it."""
        return self.name if self.lists else f"{self.name} pairs"

    def file(self, seed: int, out: Path) -> Path:
        """Its pairs with all columns that objectives read; of lists, the best against the worst response of each."""
        folder = out / ("lists" if self.lists else "pairs") / f"{slug(self.name)}-{seed}"
        return folder / ("ends/cached.parquet" if self.lists else "with_scores.parquet")


@dataclass(frozen=True)
class Objective:
    """An objective, and the values of its strength that are tried: stronger than usual, since weaker ones were never the best here."""

    name: str
    parameter: str = "beta"
    values: tuple[str, ...] = ("0.3", "1", "0.1")
    fixed: str = ""
    method: str = "preference"
    """The method of ``mmalign train`` that knows it."""

    def words(self, value: str) -> str:
        """What ``--objective`` is given."""
        return f"{self.name}:{self.parameter}={value}" + (f",{self.fixed}" if self.fixed else "")


@dataclass(frozen=True)
class Group:
    """Data sets, and the objectives that are compared on them; the search is on the first."""

    title: str
    data: Sequence[Data]
    grid: Sequence[Objective]


# The most important first. Strengths of mean scores are larger, because a mean is a tenth of a sum here.
PAIRS = Group(
    "Pairs",
    (
        Data("easy-skewed, clean", 0.8, 0.0),
        Data("easy-skewed, 20% flipped", 0.8, 0.2),
        Data("balanced, clean", 0.5, 0.0),
        Data("balanced, 20% flipped", 0.5, 0.2),
    ),
    (
        Objective("dpo"),
        Objective("simpo", values=("5", "10", "2")),
        Objective("ipo", values=("1", "3", "0.3")),
        Objective("cdpo", fixed="label_smoothing=0.2"),
        Objective("orpo", "odds_weight", ("1", "3", "0.3")),
        Objective("kto_pair"),
        Objective("flex_dpo"),
        Objective("madpo"),
        Objective("ld_dpo"),
        Objective("fdpo"),
        Objective("rdpo", fixed="label_smoothing=0.2"),
        Objective("hinge"),
        Objective("asft", "align_weight", ("1", "3", "0.3")),
        Objective("dno"),
        Objective("adpo_pair", "temperature", ("3", "1", "10")),
        Objective("smpo"),
        Objective("ddo"),
        Objective("step_dpo"),
        Objective("clipped_dpo", values=("3", "10", "1")),
        Objective("cpo"),
    ),
)
# On lists, and beside them two on the best against the worst response of the same lists. Stronger again: what a model says is likely,
# and pushing it down moves more.
LISTS = Group(
    "Lists",
    (Data("sampled lists, clean", lists=True), Data("sampled lists, 20% reversed", label_noise=0.2, lists=True)),
    (
        Objective("dpo", values=("1", "3", "0.3")),
        Objective("orpo", "odds_weight", ("1", "3", "0.3")),
        Objective("plackett_luce", values=("1", "3", "0.3"), method="listwise"),
        Objective("adpo", "temperature", ("1", "0.3", "3"), method="listwise"),
        Objective("irpo", values=("10", "30", "3"), method="listwise"),
        Objective("tpo", values=("10", "30", "3"), method="listwise"),
    ),
)
GROUPS = (PAIRS, LISTS)
WITHOUT_REFERENCE = ("simpo", "cpo", "orpo", "asft")


@dataclass(frozen=True)
class Cell:
    """One run: of the search where it has a value and a learning rate, else of the comparison with what the search found."""

    objective: Objective
    seed: int
    data: Data
    value: str = ""
    learning_rate: str = ""

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        if not self.value:
            return out / "cells" / slug(self.data.name) / str(self.seed) / f"{self.objective.name}.json"
        folder = out / ("search_lists" if self.data.lists else "search")
        return folder / self.objective.name / f"{self.value}_{self.learning_rate}.json"


def count_steps(*, quick: bool, smoke: bool) -> int:
    """Count the steps of each training."""
    return SMOKE_STEPS if smoke else QUICK_STEPS if quick else STEPS


def list_search(group: Group, objective: Objective) -> list[Cell]:
    """List the runs of an objective's search; all objectives have as many."""
    return [Cell(objective, SEARCH_SEED, group.data[0], value, rate) for rate in LEARNING_RATES for value in objective.values]


def list_searches(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the runs of all searches; the quick form has two of each objective."""
    searched = [(group, one) for group in ([PAIRS] if quick else GROUPS) for one in group.grid[: 6 if quick else None]]
    cells = [cell for group, objective in searched for cell in list_search(group, objective)]
    if quick or smoke:
        few = 1 if smoke else 2
        cells = [cell for cell in cells if cell.learning_rate == LEARNING_RATES[0] and cell.value in cell.objective.values[:few]]
    return [cell for cell in cells if cell.objective.name in SMOKE] if smoke else cells


def list_cells(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the comparison's runs, the most important ones first."""
    rounds = (QUICK_SEEDS[:1],) if smoke else (QUICK_SEEDS,) if quick else (QUICK_SEEDS, *MORE_SEEDS)
    cells = [
        Cell(objective, seed, data)
        for seeds in rounds
        for group in ([PAIRS] if quick else GROUPS)
        for data in group.data[: 2 if quick else None]
        for seed in seeds
        for objective in group.grid[: 6 if quick else None]
    ]
    return [cell for cell in cells if cell.objective.name in SMOKE] if smoke else cells


def read_search(group: Group, objective: Objective, out: Path) -> dict[tuple[str, str], float]:
    """Read the finished runs of an objective's search: (strength, learning rate) -> object F1, in the order of the grid."""
    cells = list_search(group, objective)
    return {(cell.value, cell.learning_rate): object_f1(read_json(path)) for cell in cells if (path := cell.path(out)).is_file()}


def best_of(cell: Cell, out: Path) -> tuple[str, str]:
    """Return the strength and the learning rate that the search found best; the first of equals in the order of the grid.

    Raises:
        ValueError: If the objective has no finished run of the search.
    """
    return best_setting(read_search(LISTS if cell.data.lists else PAIRS, cell.objective, out), cell.objective.name, out)

"""What the objectives study compares: data sets, objectives with the strengths that are tried, and the runs that follow."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmalign.losses.list_objectives import LIST_OBJECTIVES
from scripts.studies.objectives_report import object_f1
from scripts.studies.world_start import read_json, slug

SEARCH_SEED, QUICK_SEEDS, MORE_SEEDS = 100, (1, 2), ((3,), (4, 5))
LEARNING_RATES = ("1e-4", "3e-4")
SMOKE = ("dpo", "simpo", "plackett_luce")


@dataclass(frozen=True)
class Condition:
    """How pairs are made, or lists of responses that the start samples."""

    name: str
    easy_share: float
    label_noise: float
    lists: bool = False

    @property
    def heading(self) -> str:
        """The name as the page has it."""
        return self.name if self.lists else f"{self.name} pairs"


@dataclass(frozen=True)
class Objective:
    """An objective, and the values of its strength that are tried: stronger than usual, since weaker ones were never the best here."""

    name: str
    parameter: str = "beta"
    values: tuple[str, ...] = ("0.3", "1", "0.1")
    fixed: str = ""

    @property
    def method(self) -> str:
        """The method of ``mmalign train`` that knows it."""
        return "listwise" if self.name in LIST_OBJECTIVES.names() else "preference"

    @property
    def has_reference(self) -> bool:
        """Whether it compares with a reference."""
        return self.name not in ("simpo", "orpo", "asft")

    def words(self, value: str) -> str:
        """What ``--objective`` is given."""
        return f"{self.name}:{self.parameter}={value}" + (f",{self.fixed}" if self.fixed else "")


PAIR_CONDITIONS = (
    Condition("easy-skewed, clean", 0.8, 0.0),
    Condition("easy-skewed, 20% flipped", 0.8, 0.2),
    Condition("balanced, clean", 0.5, 0.0),
    Condition("balanced, 20% flipped", 0.5, 0.2),
)
LIST_CONDITIONS = (Condition("sampled lists, clean", 0.0, 0.0, lists=True), Condition("sampled lists, 20% reversed", 0.0, 0.2, lists=True))
CONDITIONS = (*PAIR_CONDITIONS, *LIST_CONDITIONS)
# The most important first. Strengths of mean scores are larger, because a mean is a tenth of a sum here.
PAIR_GRID = (
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
)
# On lists, and beside them two on the best against the worst response of the same lists. Stronger again: what a model says is likely,
# and pushing it down moves more.
LIST_GRID = (
    Objective("dpo", values=("1", "3", "0.3")),
    Objective("orpo", "odds_weight", ("1", "3", "0.3")),
    Objective("plackett_luce", values=("1", "3", "0.3")),
    Objective("adpo", "temperature", ("1", "0.3", "3")),
    Objective("irpo", values=("10", "30", "3")),
    Objective("tpo", values=("10", "30", "3")),
)


@dataclass(frozen=True)
class Cell:
    """One run: of the search where it has a value and a learning rate, else of the comparison with what the search found."""

    objective: Objective
    seed: int
    condition: Condition
    value: str = ""
    learning_rate: str = ""

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        if not self.value:
            return out / "cells" / slug(self.condition.name) / str(self.seed) / f"{self.objective.name}.json"
        folder = out / ("search_lists" if self.condition.lists else "search")
        return folder / self.objective.name / f"{self.value}_{self.learning_rate}.json"


def list_search(condition: Condition, objective: Objective) -> Iterator[Cell]:
    """List the search of an objective, on the condition's kind of data: as many runs for every objective."""
    searched = (LIST_CONDITIONS if condition.lists else PAIR_CONDITIONS)[0]
    for rate in LEARNING_RATES:
        yield from (Cell(objective, SEARCH_SEED, searched, value, rate) for value in objective.values)


def list_searches(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the runs of all searches; the quick form has two of each objective."""
    cells = [cell for objective in PAIR_GRID[: 6 if quick else None] for cell in list_search(PAIR_CONDITIONS[0], objective)]
    if not quick:
        cells += [cell for objective in LIST_GRID for cell in list_search(LIST_CONDITIONS[0], objective)]
    if quick or smoke:
        few = 1 if smoke else 2
        cells = [cell for cell in cells if cell.learning_rate == LEARNING_RATES[0] and cell.value in cell.objective.values[:few]]
    return [cell for cell in cells if cell.objective.name in SMOKE] if smoke else cells


def list_cells(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the comparison's runs, the most important ones first."""
    conditions = CONDITIONS[:2] if quick else CONDITIONS
    rounds = (QUICK_SEEDS[:1],) if smoke else (QUICK_SEEDS,) if quick else (QUICK_SEEDS, *MORE_SEEDS)
    cells = [
        Cell(objective, seed, condition)
        for seeds in rounds
        for condition in conditions
        for seed in seeds
        for objective in (LIST_GRID if condition.lists else PAIR_GRID[: 6 if quick else None])
    ]
    return [cell for cell in cells if cell.objective.name in SMOKE] if smoke else cells


def read_search(condition: Condition, objective: Objective, out: Path) -> dict[tuple[str, str], float]:
    """Read the finished runs of an objective's search: (strength, learning rate) -> object F1, in the order of the grid."""
    cells = list_search(condition, objective)
    return {(cell.value, cell.learning_rate): object_f1(read_json(path)) for cell in cells if (path := cell.path(out)).is_file()}


def best_of(condition: Condition, objective: Objective, out: Path) -> tuple[str, str]:
    """Return the strength and the learning rate that the search found best; the first of equals in the order of the grid.

    Raises:
        ValueError: If the objective has no finished run of the search.
    """
    scores = read_search(condition, objective, out)
    if not scores:
        raise ValueError(f"{objective.name} has no finished run of the search in {out}; run the study without --report-only")
    return max(scores, key=lambda key: scores[key])

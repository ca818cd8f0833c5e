"""What the cells of the study of two heads say: accuracies by seed, and the gain over the single head that a user would choose."""

from pathlib import Path
from statistics import mean
from typing import Any

from scripts.studies.dho_grid import Cell
from scripts.studies.study import read_json

Results = dict[Cell, dict[str, Any]]
SINGLE_HEADS = [("ce-only", 0.5), ("kd-only", 0.5), *(("single-head", w) for w in (0.2, 0.5, 0.8, 0.9, 0.95))]
# Without these the best single head of a cell is not known.
_NEEDED = {("ce-only", 0.5), ("kd-only", 0.5), ("single-head", 0.5)}


def load_cells(out: Path) -> Results:
    """Read finished cells."""
    found = [read_json(path) for path in sorted((out / "cells").glob("*.json"))]
    return {Cell(**result["cell"]): result for result in found}


def accuracy(result: dict[str, Any], head: str | None = None, *, part: str = "test") -> float:
    """Accuracy in percent: of a head, or of what the form is used by."""
    return 100 * result[part][head or ("mixed" if "mixed" in result[part] else "ce_head")]["accuracy"]


def pick(cells: Results, labels: str, form: str, weight: float = 0.5, *, teacher: str = "real", **fields: Any) -> dict[int, dict[str, Any]]:
    """Find the results of one arm by seed; CE only and FixMatch know no teacher."""
    known = "none" if form in ("ce-only", "fixmatch") else teacher
    wanted = [Cell(labels, known, form, seed, label_weight=weight, **fields) for seed in range(5)]
    return {cell.seed: cells[cell] for cell in wanted if cell in cells}


def scores(runs: dict[int, dict[str, Any]], head: str | None = None) -> dict[int, float]:
    """Test accuracy by seed."""
    return {seed: accuracy(result, head) for seed, result in runs.items()}


def best_single_heads(cells: Results, labels: str, *, teacher: str, part: str = "validation", **fields: Any) -> dict[int, float]:
    """Test accuracy by seed of the single head that ``part`` prefers (of equals the first): "validation" is what a user can do.

    "test" looks ahead: the largest of several noisy numbers, which flatters the single head.
    """
    arms = {arm: pick(cells, labels, *arm, teacher=teacher, **fields) for arm in SINGLE_HEADS}
    found = {}
    for seed in range(5):
        rivals = {arm: runs[seed] for arm, runs in arms.items() if seed in runs}
        if rivals.keys() >= _NEEDED:
            found[seed] = accuracy(max(rivals.values(), key=lambda result: accuracy(result, part=part)))
    return found


def gain(cells: Results, labels: str, teacher: str, rival: str = "validation", **fields: Any) -> list[float]:
    """DHO (tuned mixing) minus a single head, a value a seed: the best one by ``rival``, or "equal", the one with equal weights."""
    own = scores(pick(cells, labels, "dual-head", teacher=teacher, **fields))
    if rival == "equal":
        others = scores(pick(cells, labels, "single-head", 0.5, teacher=teacher, **fields))
    else:
        others = best_single_heads(cells, labels, teacher=teacher, part=rival, **fields)
    return [own[seed] - others[seed] for seed in sorted(set(own) & set(others))]


def teacher_accuracies(cells: Results) -> dict[str, float]:
    """Each teacher's accuracy on the unlabelled images, rising; the blind one, whose errors are of another kind, stands last."""
    found: dict[str, list[float]] = {}
    for cell, result in cells.items():
        if result.get("teacher_accuracy_unlabeled") and cell.views == "centre":
            found.setdefault(cell.teacher, []).append(result["teacher_accuracy_unlabeled"])
    return dict(sorted(((teacher, mean(values)) for teacher, values in found.items()), key=lambda pair: (pair[0] == "blind", pair[1])))

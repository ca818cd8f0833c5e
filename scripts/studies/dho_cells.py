"""The cells of the study of two heads: one training run each, and how their accuracies are compared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple

from mmalign.files import read_json

LABELS = {"1 shot": 10, "4 shots": 40, "0.5%": 58, "1%": 115, "16 shots": 160, "5%": 575, "10%": 1150, "20%": 2300}
MAP_LABELS = ("0.5%", "1%", "5%", "10%", "20%")
TABLE_LABELS = ("1 shot", "4 shots", "16 shots", "1%", "10%")
# Steps of real teachers; corrected ones are the strongest with a share of its errors mended.
REAL_TEACHERS = {"weak": 120, "real": 900}
CORRECTED = (0.7, 0.8, 0.9)
# The strongest teacher that never names the first three classes: about as often wrong as the weak one, but always on the same classes.
BLIND_CLASSES = 3
STEPS, LONG_STEPS, BATCH = 400, 1600, 32
CLOSED_FORM = {
    "kernel, labels": ("hilbert", "true"),
    "kernel, teacher": ("hilbert", "teacher"),
    "kernel, both": ("hilbert", "both"),
    "ridge, labels": ("ridge", "true"),
    "ridge, teacher": ("ridge", "teacher"),
}
"""Heads that are computed on the frozen features of a DHO student, by name: kernel and labels."""
RIVALS = ("pcgrad", "sskd", "dhkd")
CORNERS = tuple((labels, teacher) for labels in ("1%", "10%") for teacher in ("real", "blind"))
"""Where closed forms and rivals run."""
DISCOVERED = ("discovered", "k-means")
"""Teachers without a label: classes from domains, and the control, clusters of the domain classifier's features."""
DOMAIN_LABELS = ("1%", "10%")


@dataclass(frozen=True)
class Cell:
    """One training run."""

    labels: str
    teacher: str
    form: str
    seed: int
    student: str = "small"
    label_weight: float = 0.5
    steps: int = STEPS
    views: Literal["centre", "fixed", "live"] = "centre"
    """What the teacher sees: the stored image, once; four fixed views of it, once; the student's own view, each time."""
    data: Literal["photographs", "domains"] = "photographs"
    """All of the student's photographs; those of four classes, dealt out to domains."""

    @property
    def name(self) -> str:
        """File name."""
        words = [self.labels, self.teacher, self.form, f"w{self.label_weight:g}", self.student, f"s{self.seed}"]
        words += [] if self.steps == STEPS else [f"{self.steps}-steps"]
        words += [] if self.views == "centre" else [self.views]
        words += [] if self.data == "photographs" else [self.data]
        return "_".join(words).replace(" ", "-").replace("%", "pc")

    @property
    def beside(self) -> bool:
        """Whether the cell is of what stands beside the map: closed forms, rivals with a teacher, classes from domains."""
        return self.form in ("closed-form", *RIVALS) or self.data == "domains"

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        return out / "cells" / f"{self.name}.json"


TABLE_FORMS = [
    ("ce-only", 0.5),
    ("dual-head", 0.5),
    ("kd-only", 0.5),
    ("single-head", 0.5),
    ("feature-kd", 0.5),
    ("fixmatch", 0.5),
    ("single-head", 0.2),
    ("single-head", 0.8),
]
_SINGLE_FORMS = [(form, 0.5) for form in ("dual-head", "single-head", "ce-only", "kd-only")]
TEACHERS = ["blind", *REAL_TEACHERS, *(f"corrected {accuracy:.0%}" for accuracy in CORRECTED)]


def list_cells(*, quick: bool) -> list[Cell]:
    """List the cells: corners of the map and all forms with one seed first, then everything seed by seed."""
    cells = []
    for teacher in ("real", "weak", "corrected 90%"):
        for labels in ("1%", "20%"):
            forms = _SINGLE_FORMS + [("single-head", 0.8)] * (labels == "20%")
            cells += [Cell(labels, teacher, form, 0, label_weight=w) for form, w in forms]
    cells += _table(("10%", "1%"), 0)
    for seed in range(0 if quick else 5):
        cells += _table(TABLE_LABELS, seed) + _map(seed)
        if seed < 3:
            cells += _blind_weights(seed) + _views(seed) + _long(seed)
        cells += _beside(seed)
        cells += _table(TABLE_LABELS, seed, student="medium")
    # FixMatch and CE only know no teacher: one cell serves all of them.
    known = [replace(c, teacher="none") if c.form in ("ce-only", "fixmatch") else c for c in cells]
    return list(dict.fromkeys(known))


def _beside(seed: int) -> list[Cell]:
    """Heads in closed form, rivals of two heads, and students of discovered classes with their controls."""
    cells = [Cell(labels, teacher, form, seed) for labels, teacher in CORNERS for form in ("closed-form", *RIVALS)]
    forms = [("none", "ce-only"), *((teacher, form) for teacher in DISCOVERED for form in ("kd-only", "dual-head"))]
    return cells + [Cell(labels, teacher, form, seed, data="domains") for labels in DOMAIN_LABELS for teacher, form in forms]


def _table(labels: Sequence[str], seed: int, student: str = "small") -> list[Cell]:
    """Every form under the real teacher."""
    return [Cell(one, "real", form, seed, student, w) for one in labels for form, w in TABLE_FORMS]


def _forms_of_map(labels: str) -> list[tuple[str, float]]:
    """DHO, and what a single head can be."""
    return [*_SINGLE_FORMS, ("single-head", swept_weight(labels))]


def swept_weight(labels: str) -> float:
    """The second weight of the single head on the map: few labels want a small one, many a large one."""
    return 0.2 if LABELS[labels] < 200 else 0.8


def _map(seed: int) -> list[Cell]:
    """The map: DHO against single heads of every weight, by label share and teacher."""
    return [Cell(one, t, form, seed, label_weight=w) for one in MAP_LABELS for t in TEACHERS for form, w in _forms_of_map(one)]


def _blind_weights(seed: int) -> list[Cell]:
    """A finer search of the single head's weight where two heads gain most, so that the gain is no matter of a coarse one."""
    return [Cell(one, "blind", "single-head", seed, label_weight=w) for one in ("10%", "20%", "5%") for w in (0.9, 0.95)]


def _views(seed: int) -> list[Cell]:
    """The ways in which a teacher can look at the student's images, beside the default one."""
    return [replace(Cell(one, "real", "dual-head", seed), views=v) for one in ("1%", "10%") for v in ("fixed", "live")]


def _long(seed: int) -> list[Cell]:
    """Nine cells of the map with four times the steps; with one seed also the weight that the blind teacher's finer search ends at."""
    corners = [(labels, teacher) for labels in ("20%", "5%", "1%") for teacher in ("blind", "real", "weak")]
    cells = [Cell(one, t, form, seed, label_weight=w, steps=LONG_STEPS) for one, t in corners for form, w in _forms_of_map(one)]
    return cells + [Cell("20%", "blind", "single-head", 0, label_weight=0.95, steps=LONG_STEPS)] * (seed == 0)


Run = dict[str, Any]
"""The report of a finished run."""
Results = dict[Cell, Run]


class Arm(NamedTuple):
    """What is compared over seeds: a form, and of two heads one or a mixture; None is what the form is used by."""

    form: str
    weight: float = 0.5
    head: str | None = None


SINGLE_HEADS = [Arm("ce-only"), Arm("kd-only"), *(Arm("single-head", w) for w in (0.2, 0.5, 0.8, 0.9, 0.95))]
# Without these the best single head of a cell is not known.
_NEEDED = {Arm("ce-only"), Arm("kd-only"), Arm("single-head")}


def load_cells(out: Path) -> Results:
    """Read finished cells."""
    found = [read_json(path) for path in sorted((out / "cells").glob("*.json"))]
    return {Cell(**result["cell"]): result for result in found}


def pick(cells: Results, labels: str, arm: Arm, *, teacher: str = "real", **fields: Any) -> dict[int, Run]:
    """Find the results of an arm by seed; CE only and FixMatch know no teacher."""
    known = "none" if arm.form in ("ce-only", "fixmatch") else teacher
    wanted = [Cell(labels, known, arm.form, seed, label_weight=arm.weight, **fields) for seed in range(5)]
    return {cell.seed: cells[cell] for cell in wanted if cell in cells}


def score(run: Run, head: str | None = None, *, part: str = "test", metric: str = "accuracy") -> float:
    """A metric in percent: of a head, or of what the form is used by."""
    return 100 * run[part][head or ("mixed" if "mixed" in run[part] else "ce_head")][metric]


def scores(cells: Results, labels: str, arm: Arm, *, metric: str = "accuracy", **fields: Any) -> dict[int, float]:
    """A metric on test images by seed."""
    return {seed: score(run, arm.head, metric=metric) for seed, run in pick(cells, labels, arm, **fields).items()}


def best_single_heads(cells: Results, labels: str, *, part: str = "validation", **fields: Any) -> dict[int, float]:
    """Test accuracy by seed of the single head that ``part`` prefers (of equals the first): "validation" is what a user can do.

    "test" looks ahead: the largest of several noisy numbers, which flatters the single head.
    """
    arms = {arm: pick(cells, labels, arm, **fields) for arm in SINGLE_HEADS}
    found = {}
    for seed in range(5):
        rivals = {arm: runs[seed] for arm, runs in arms.items() if seed in runs}
        if rivals.keys() >= _NEEDED:
            found[seed] = score(max(rivals.values(), key=lambda run: score(run, part=part)))
    return found


def gain(cells: Results, labels: str, rival: str = "validation", **fields: Any) -> list[float]:
    """DHO (tuned mixing) minus a single head, a value per seed: the best one by ``rival``, or "equal", the one with equal weights."""
    own = scores(cells, labels, Arm("dual-head"), **fields)
    if rival == "equal":
        others = scores(cells, labels, Arm("single-head"), **fields)
    else:
        others = best_single_heads(cells, labels, part=rival, **fields)
    return [own[seed] - others[seed] for seed in sorted(set(own) & set(others))]


def teacher_accuracies(cells: Results) -> dict[str, float]:
    """Each teacher's accuracy on the unlabelled images, rising; the blind one, whose errors are of another kind, stands last."""
    found: dict[str, list[float]] = {}
    for cell, result in cells.items():
        if result.get("teacher_accuracy_unlabeled") and cell.views == "centre":
            found.setdefault(cell.teacher, []).append(result["teacher_accuracy_unlabeled"])
    return dict(sorted(((teacher, mean(values)) for teacher, values in found.items()), key=lambda pair: (pair[0] == "blind", pair[1])))

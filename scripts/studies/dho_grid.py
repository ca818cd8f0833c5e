"""The cells of the study of two heads: one training run each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

LABELS = {"1 shot": 10, "4 shots": 40, "0.5%": 58, "1%": 115, "16 shots": 160, "5%": 575, "10%": 1150, "20%": 2300}
MAP_LABELS = ("0.5%", "1%", "5%", "10%", "20%")
TABLE_LABELS = ("1 shot", "4 shots", "16 shots", "1%", "10%")
# Steps of real teachers; corrected ones are the strongest with a share of its errors mended.
REAL_TEACHERS = {"weak": 120, "real": 900}
CORRECTED = (0.7, 0.8, 0.9)
# The strongest teacher that never names the first three classes: about as often wrong as the weak one, but always on the same classes.
BLIND_CLASSES = 3
STEPS, LONG_STEPS, BATCH = 400, 1600, 32


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

    @property
    def name(self) -> str:
        """File name."""
        words = [self.labels, self.teacher, self.form, f"w{self.label_weight:g}", self.student, f"s{self.seed}"]
        words += [] if self.steps == STEPS else [f"{self.steps}-steps"]
        words += [] if self.views == "centre" else [self.views]
        return "_".join(words).replace(" ", "-").replace("%", "pc")

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
        cells += _table(TABLE_LABELS, seed, student="medium")
    # FixMatch and CE only know no teacher: one cell serves all of them.
    known = [replace(c, teacher="none") if c.form in ("ce-only", "fixmatch") else c for c in cells]
    return list(dict.fromkeys(known))


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

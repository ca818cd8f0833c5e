"""The cells of the study of two heads: one training run each, listed from the most important."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
TEACHERS = ["blind", *REAL_TEACHERS, *(f"corrected {accuracy:.0%}" for accuracy in CORRECTED)]


def list_cells(*, quick: bool) -> list[Cell]:
    """List the cells from the most important: a coarse map and all forms, longer training, the map, more seeds, the larger student."""
    cells = []
    for teacher in ("real", "weak", "corrected 90%"):
        for labels in ("1%", "20%"):
            forms = [("dual-head", 0.5), ("single-head", 0.5), ("ce-only", 0.5), ("kd-only", 0.5)] + [("single-head", 0.8)] * (
                labels == "20%"
            )
            cells += [Cell(labels, teacher, form, 0, label_weight=w) for form, w in forms]
    cells += _table(("10%", "1%"), [0])
    if quick:
        return _without_teachers(cells)
    cells += _map(("10%", "20%", "5%", "1%"), ["blind"], [0])
    cells += _blind_weights([0]) + _map(("10%", "20%", "5%"), ["blind"], [1, 2]) + _blind_weights([1, 2])
    cells += _map(MAP_LABELS, ("weak", "real", "corrected 90%"), [0])
    cells += _long([("20%", "blind")], [0])
    cells += [Cell("20%", "blind", "single-head", 0, label_weight=0.95, steps=LONG_STEPS)]
    cells += _table(("1%", "10%"), [1])
    cells += _views(("1%", "10%"), [0])
    cells += [Cell("10%", "real", form, 0, "medium", w) for form, w in TABLE_FORMS[:4]]
    cells += [Cell(labels, "real", form, 0, label_weight=w) for labels in ("16 shots", "4 shots", "1 shot") for form, w in TABLE_FORMS[:3]]
    cells += _table(("1%", "10%"), [2])
    cells += _long([("20%", "real")], [0])
    cells += _views(("1%", "10%"), [1, 2])
    cells += [Cell("1%", "real", form, 0, "medium", w) for form, w in TABLE_FORMS[:4]]
    cells += _table(("16 shots", "4 shots", "1 shot"), [0])
    cells += _table(("1%", "10%"), [3, 4])
    cells += _table(("1 shot", "4 shots", "16 shots"), range(1, 5))
    cells += [Cell(one, "real", form, seed, "medium", w) for seed in range(3) for one in ("1%", "10%") for form, w in TABLE_FORMS]
    cells += _map(("20%", "1%"), ("weak", "real"), [1, 2])
    cells += _long([("1%", "weak"), ("5%", "blind"), ("20%", "weak"), ("5%", "real")], [0])
    cells += _map(MAP_LABELS, TEACHERS, range(3))
    cells += _long([(labels, t) for labels in ("20%", "5%", "1%") for t in ("blind", "real", "weak")], range(3))
    cells += [Cell(labels, "real", form, seed, "medium", w) for seed in range(5) for labels in TABLE_LABELS for form, w in TABLE_FORMS]
    cells += _map(MAP_LABELS, TEACHERS, [3, 4])
    return _without_teachers(cells)


def _table(labels: Sequence[str], seeds: Iterable[int]) -> list[Cell]:
    """Every form under the real teacher."""
    return [Cell(one, "real", form, seed, label_weight=w) for seed in seeds for one in labels for form, w in TABLE_FORMS]


def _forms_of_map(labels: str) -> list[tuple[str, float]]:
    """DHO, and what a single head can be."""
    return [(form, 0.5) for form in ("dual-head", "kd-only", "single-head", "ce-only")] + [("single-head", swept_weight(labels))]


def swept_weight(labels: str) -> float:
    """The second weight of the single head on the map: few labels want a small one, many a large one."""
    return 0.2 if LABELS[labels] < 200 else 0.8


def _map(labels: Sequence[str], teachers: Sequence[str], seeds: Iterable[int]) -> list[Cell]:
    """The map: DHO against single heads of every weight, by label share and teacher."""
    return [Cell(one, t, form, s, label_weight=w) for s in seeds for one in labels for t in teachers for form, w in _forms_of_map(one)]


def _blind_weights(seeds: Iterable[int]) -> list[Cell]:
    """A finer search of the single head's weight where two heads gain most, so that the gain is no matter of a coarse one."""
    return [
        Cell(labels, "blind", "single-head", seed, label_weight=w) for seed in seeds for labels in ("10%", "20%", "5%") for w in (0.9, 0.95)
    ]


def _views(labels: Sequence[str], seeds: Iterable[int]) -> list[Cell]:
    """The ways in which a teacher can look at the student's images, beside the default one."""
    views: tuple[Literal["fixed", "live"], ...] = ("fixed", "live")
    return [Cell(one, "real", "dual-head", seed, views=v) for seed in seeds for one in labels for v in views]


def _long(corners: Sequence[tuple[str, str]], seeds: Iterable[int]) -> list[Cell]:
    """The same with four times the steps."""
    return [
        Cell(labels, teacher, form, seed, label_weight=w, steps=LONG_STEPS)
        for seed in seeds
        for labels, teacher in corners
        for form, w in _forms_of_map(labels)
    ]


def _without_teachers(cells: Sequence[Cell]) -> list[Cell]:
    """FixMatch and CE only know no teacher: one cell serves all of them."""
    known = [replace(c, teacher="none") if c.form in ("ce-only", "fixmatch") else c for c in cells]
    return list(dict.fromkeys(known))

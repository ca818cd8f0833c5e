"""How well the difficulty scores, which never saw the truth, order the pairs by their true grade."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmalign.errors import UserError

Grade = Literal["easy", "hard"]
GRADES: tuple[Grade, ...] = ("easy", "hard")


@dataclass(frozen=True)
class ProxySummary:
    """A proxy's share of pairs whose chosen response it scores higher, and its weight in the vote."""

    name: str
    accuracy: float
    weight: float


@dataclass(frozen=True)
class DifficultySummary:
    """The scores of a data set.

    Attributes:
        difficulty: Of each pair, in [0, 1], 1 = hard.
        true_grades: What the pairs' maker meant them to be.
        proxies: The models that voted.
    """

    difficulty: Sequence[float]
    true_grades: Sequence[Grade]
    proxies: Sequence[ProxySummary]


def split_by_grade(summary: DifficultySummary) -> dict[Grade, list[float]]:
    """Return each grade's difficulties.

    Raises:
        ValueError: If the lengths differ, or a value or a grade is out of range.
    """
    if len(summary.difficulty) != len(summary.true_grades) or not summary.difficulty:
        raise UserError(f"{len(summary.difficulty)} difficulties and {len(summary.true_grades)} true grades; expected one grade a pair")
    groups: dict[Grade, list[float]] = {grade: [] for grade in GRADES}
    for value, grade in zip(summary.difficulty, summary.true_grades, strict=True):
        if grade not in groups:
            raise UserError(f"true grade {grade!r}; expected {' or '.join(GRADES)}")
        if not 0 <= value <= 1:
            raise UserError(f"difficulty {value}; expected a number in [0, 1]")
        groups[grade].append(value)
    return groups


def compute_ordering(easy: Sequence[float], hard: Sequence[float]) -> float:
    """Probability that a random hard pair scores above a random easy one, ties counting half (Mann-Whitney U / nm; the area under ROC).

    Raises:
        ValueError: If either side is empty.
    """
    if not easy or not hard:
        raise UserError(f"{len(easy)} easy and {len(hard)} hard pairs; expected some of each")
    ordered = np.sort(np.asarray(easy, dtype=np.float64))
    below = np.searchsorted(ordered, hard, side="left")
    not_above = np.searchsorted(ordered, hard, side="right")
    return float((below + not_above).sum() / (2 * len(easy) * len(hard)))

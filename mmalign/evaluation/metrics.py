"""Metrics as formulas over sums: scored answers add up to them, whichever answers are taken.

Shape legend: S = sets of answers that are added up at once (one, or its resamples), K = values of the groups.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Better = Literal["higher", "lower", "near_half"]
Unit = Literal["share", "percent", "number"]


@dataclass(frozen=True)
class Sums:
    """What sets of answers add up to.

    Attributes:
        columns: (group, value) -> column of ``totals``.
        totals: (S, K).
    """

    columns: Mapping[tuple[str, str], int]
    totals: Array

    def within(self, groups: Sequence[str]) -> "Sums":
        """Return the sums of these groups alone."""
        return Sums({key: column for key, column in self.columns.items() if key[0] in groups}, self.totals)

    def get(self, name: str) -> Array | None:
        """Return (S,) sums of a value over its groups; None where no answer has it."""
        chosen = [column for (_, value), column in self.columns.items() if value == name]
        return self.totals[:, chosen].sum(axis=1) if chosen else None


# Turns sums into (S,) values; None where no answer has what it needs, and the metric is left out.
Formula = Callable[[Sums], Array | None]


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is shown.

    Attributes:
        label: In words.
        better: Which way; None where neither is.
        unit: A share of one is shown in percent; what the original script gives in percent already, and a number, as they are.
        drawn: Whether it has a bar, where it stands for the whole benchmark.
    """

    label: str
    better: Better | None = None
    unit: Unit = "number"
    drawn: bool = False


@dataclass(frozen=True, kw_only=True)
class Metric(MetricInfo):
    """How a metric is computed and shown.

    Attributes:
        formula: Its value of any answers.
        constant: Whether it is also given for constant answers.
        resampled: What is drawn as one for its interval: images, or clusters (``Item.cluster``) where it joins answers about several
            images. A count has no interval.
    """

    formula: Formula
    constant: bool = False
    resampled: Literal["image", "cluster"] | None = "image"


def ratio(top: str, bottom: str, *, scale: float = 1.0, start: float = 0.0, digits: int | None = None) -> Formula:
    """Divide a sum by another: top / (bottom + start) * scale, rounded where ``digits`` are given. 0 / 0 is 0."""

    def compute(sums: Sums) -> Array | None:
        above, below = sums.get(top), sums.get(bottom)
        return None if above is None or below is None else _rounded(divide(above, below + start) * scale, digits)

    return compute


def count(name: str) -> Formula:
    """Take a sum as it is."""
    return lambda sums: sums.get(name)


def within(groups: Sequence[str], formula: Formula) -> Formula:
    """Take the answers of some groups alone."""
    return lambda sums: formula(sums.within(groups))


def prefixed(prefix: str, formula: Formula) -> Formula:
    """Compute a metric of values whose names begin so: another reading or another label of the same answers."""

    def compute(sums: Sums) -> Array | None:
        names = {(group, name.removeprefix(prefix)): column for (group, name), column in sums.columns.items() if name.startswith(prefix)}
        return formula(Sums(names, sums.totals))

    return compute


def combine(function: Callable[..., Array], *formulas: Formula, digits: int | None = None) -> Formula:
    """Compute a metric from others; it is left out where one of them is."""

    def compute(sums: Sums) -> Array | None:
        values = [formula(sums) for formula in formulas]
        return None if any(value is None for value in values) else _rounded(function(*values), digits)

    return compute


def total(formulas: Sequence[Formula]) -> Formula:
    """Add the metrics that are there."""

    def compute(sums: Sums) -> Array | None:
        values = [value for formula in formulas if (value := formula(sums)) is not None]
        return sum(values[1:], values[0]) if values else None

    return compute


def mean(formulas: Sequence[Formula]) -> Formula:
    """Average the metrics that are there."""

    def compute(sums: Sums) -> Array | None:
        there = sum(formula(sums) is not None for formula in formulas)
        added = total(formulas)(sums)
        return None if added is None else added / there

    return compute


def harmonic_mean(precision: Array, recall: Array, *, epsilon: float = 0.0) -> Array:
    """Return F1, with what some scripts add below the line."""
    return divide(2 * precision * recall, precision + recall + epsilon)


def divide(tops: Array, bottoms: Array) -> Array:
    """Divide, where nothing of nothing is 0."""
    return np.divide(tops, bottoms, out=np.zeros_like(tops), where=bottoms != 0)


def _rounded(values: Array, digits: int | None) -> Array:
    """Round as Python does, and the original scripts with it: numpy scales first, and then differs at halves."""
    return values if digits is None else np.array([round(value, digits) for value in values.tolist()])

"""Means with their intervals over seeds, paired tests, and Markdown tables of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its 95% interval (Student's t); NaN with one seed."""

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        """Show one decimal."""
        return f"{self.mean:.1f}" + ("" if np.isnan(self.half_width) else f" ± {self.half_width:.1f}")


class Difference(NamedTuple):
    """Mean difference of two arms seed by seed, half its 95% interval, and the p-value of the paired t-test."""

    mean: float
    half_width: float
    p_value: float

    def __str__(self) -> str:
        """Show one decimal, with the p-value."""
        if np.isnan(self.half_width):
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} ± {self.half_width:.1f} (p {'< 0.001' if self.p_value < 0.001 else f'= {self.p_value:.3f}'})"


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean from one value a seed.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("no values: no seed of this arm is finished")
    array = np.asarray(values, dtype=float)
    if len(array) == 1:
        return Estimate(float(array[0]), float("nan"), 1)
    width = stats.t.ppf((1 + LEVEL) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return Estimate(float(array.mean()), float(width), len(array))


def compare(values: Mapping[int, float], others: Mapping[int, float]) -> Difference:
    """Compare two arms over the seeds that both have.

    Args:
        values: Seed -> value of one arm.
        others: The same of the arm that it is compared with.
    """
    seeds = sorted(set(values) & set(others))
    differences = estimate([values[seed] - others[seed] for seed in seeds])
    p_value = float("nan")
    if differences.count > 1:
        spread = np.ptp([values[seed] - others[seed] for seed in seeds])
        equal = 1.0 if differences.mean == 0 else 0.0
        p_value = float(stats.ttest_rel([values[s] for s in seeds], [others[s] for s in seeds]).pvalue) if spread else equal
    return Difference(differences.mean, differences.half_width, p_value)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table; the first column is text, the others are right-aligned."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])

"""Scores of a whole set on another scale, found by reading it once: the mean and deviation, or the smallest and largest."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmalign.errors import UserError

ScaleName = Literal["none", "zscore", "minmax"]
SCORE_COLUMNS = ("score_chosen", "score_rejected", "scores")


@dataclass(frozen=True)
class Scale:
    """A straight line through two scores: the one that becomes 0 and the one that becomes 1."""

    zero: float = 0.0
    one: float = 1.0

    def applied(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its scores mapped."""
        return {name: self._mapped(value) if name in SCORE_COLUMNS else value for name, value in row.items()}

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._mapped(score) for score in value]
        return (value - self.zero) / (self.one - self.zero)


class Spread:
    """Number, mean, squared deviations (Welford's sums), smallest and largest of the scores added."""

    def __init__(self) -> None:
        """Start with none."""
        self.count = 0
        self.mean = self.squares = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, scores: Iterable[float]) -> None:
        """Add scores."""
        for score in scores:
            self.count += 1
            before = score - self.mean
            self.mean += before / self.count
            self.squares += before * (score - self.mean)
            self.low, self.high = min(self.low, score), max(self.high, score)

    def scale(self, name: ScaleName, *, what: str) -> Scale:
        """Find the scale of this name.

        Raises:
            ValueError: If there is no score, or all are one.
        """
        if not self.count:
            raise UserError(f"--scale {name}: {what} has no scores")
        if self.low == self.high:
            raise UserError(f"--scale {name}: all {self.count} scores of {what} are {self.low:g}; expected different ones")
        if name == "minmax":
            return Scale(self.low, self.high)
        return Scale(self.mean, self.mean + math.sqrt(self.squares / self.count)) if name == "zscore" else Scale()

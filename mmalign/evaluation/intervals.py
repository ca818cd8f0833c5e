"""Metrics from scored answers, and how far they would move with other images: the percentile bootstrap (Efron 1979).

Shape legend: I = images, K = ratios (a metric in a group), S = resamples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import UserError
from mmalign.evaluation.items import Item

# Over its groups a benchmark's metric is their plain mean here, and pooled elsewhere.
_MEAN_OF_GROUPS = frozenset({"pope"})
_CHUNK = 64

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A metric and the range that its resamples fall in."""

    value: float
    low: float
    high: float


def compute_metrics(benchmark: str, items: Sequence[Item]) -> dict[str, float]:
    """Compute every metric of the items: ``<benchmark>/<group>/<name>`` of each group, and ``<benchmark>/<name>`` over all. 0 / 0 is 0."""
    sums = _Sums(items)
    totals = sums.parts.sum(axis=0, keepdims=True)
    return {key: float(value[0]) for key, value in _metrics(benchmark, sums.names, totals).items()}


def compute_intervals(
    benchmark: str, items: Sequence[Item], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Compute percentile-bootstrap intervals, resampling images with all their answers.

    Answers about one image are not independent; resampling answers would give intervals that are too narrow.

    Args:
        benchmark: First part of the metrics' keys.
        items: Scored answers of one model.
        level: Share of the resamples inside the interval.
        resamples: Number of resamples.
        seed: Of the resampling. Equal images, in any order, give equal resamples for every model.

    Returns:
        Intervals by metric key.

    Raises:
        ValueError: If there are no items, or ``level`` or ``resamples`` is out of range.
    """
    check_bootstrap(level=level, resamples=resamples)
    replicates = _replicate(benchmark, items, resamples=resamples, seed=seed)
    return {key: _interval(value, replicates[key], level) for key, value in compute_metrics(benchmark, items).items()}


def compute_differences(
    benchmark: str, items: Sequence[Item], baseline: Sequence[Item], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Compute intervals of each metric less the baseline's, both on the same resampled images.

    What is hard about an image is hard for both models, so this is narrower than two intervals side by side suggest.

    Raises:
        ValueError: As ``compute_intervals``, or if the two are not about the same questions.
    """
    check_bootstrap(level=level, resamples=resamples)
    if {item.id for item in items} != {item.id for item in baseline}:
        raise UserError(f"{benchmark}: the models answered different questions ({len(items)} and {len(baseline)} answers)")
    ours, theirs = (_replicate(benchmark, those, resamples=resamples, seed=seed) for those in (items, baseline))
    values, before = compute_metrics(benchmark, items), compute_metrics(benchmark, baseline)
    return {key: _interval(values[key] - before[key], ours[key] - theirs[key], level) for key in values}


def check_bootstrap(*, level: float, resamples: int) -> None:
    """Refuse settings that give no interval.

    Raises:
        ValueError: If ``level`` is not between 0 and 1, or there are fewer than 100 resamples.
    """
    if not 0 < level < 1 or resamples < 100:
        raise UserError(f"level is {level} and resamples {resamples}; expected a share between 0 and 1, and at least 100")


class _Sums:
    """Numerators and denominators, summed by image: ``parts`` (I, 2K), all numerators first. Images are in sorted order."""

    def __init__(self, items: Sequence[Item]) -> None:
        if not items:
            raise UserError("there are no scored answers")
        self.names = sorted({(item.group, name) for item in items for name in item.values})
        columns = {name: column for column, name in enumerate(self.names)}
        rows = {image: row for row, image in enumerate(sorted({_cluster(item) for item in items}))}
        self.parts: Array = np.zeros((len(rows), 2 * len(columns)))
        for item in items:
            for name, (top, bottom) in item.values.items():
                column = columns[item.group, name]
                self.parts[rows[_cluster(item)], column] += top
                self.parts[rows[_cluster(item)], column + len(columns)] += bottom


def _cluster(item: Item) -> tuple[str, str]:
    """What is resampled as one: an image, or a question without one."""
    return ("", item.id) if item.image is None else (item.image, "")


def _replicate(benchmark: str, items: Sequence[Item], *, resamples: int, seed: int) -> dict[str, Array]:
    """Return (S,) values of each metric."""
    sums = _Sums(items)
    num_images = len(sums.parts)
    rng = np.random.default_rng(seed)
    totals = []
    for start in range(0, resamples, _CHUNK):
        # How often each image is drawn in I draws with replacement; chunks bound the memory for large I.
        counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=min(_CHUNK, resamples - start))
        totals.append(counts @ sums.parts)
    return _metrics(benchmark, sums.names, np.concatenate(totals))


def _metrics(benchmark: str, names: Sequence[tuple[str, str]], totals: Array) -> dict[str, Array]:
    """Turn (S, 2K) sums into (S,) values by metric key."""
    tops, bottoms = np.split(totals, 2, axis=1)
    by_name: dict[str, list[int]] = {}
    metrics: dict[str, Array] = {}
    for column, (group, name) in enumerate(names):
        by_name.setdefault(name, []).append(column)
        if group:
            metrics[f"{benchmark}/{group}/{name}"] = _divide(tops[:, column], bottoms[:, column])
    for name, columns in by_name.items():
        if benchmark in _MEAN_OF_GROUPS:
            values = _divide(tops[:, columns], bottoms[:, columns]).mean(axis=1)
        else:
            values = _divide(tops[:, columns].sum(axis=1), bottoms[:, columns].sum(axis=1))
        metrics[f"{benchmark}/{name}"] = values
    return metrics


def _divide(tops: Array, bottoms: Array) -> Array:
    return np.divide(tops, bottoms, out=np.zeros_like(tops), where=bottoms != 0)


def _interval(value: float, replicates: Array, level: float) -> Interval:
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))

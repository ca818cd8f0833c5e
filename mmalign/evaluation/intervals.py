"""How far metrics would move with other images: the percentile bootstrap (Efron 1979).

Shape legend: I = images, K = values of the groups, S = resamples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmalign.errors import UserError
from mmalign.evaluation.benchmark import Benchmark, compute_metrics, evaluate_formulas
from mmalign.evaluation.items import Item, add_up
from mmalign.evaluation.metrics import Array, Sums

_CHUNK = 64


class Interval(NamedTuple):
    """A metric and the range that its resamples fall in."""

    value: float
    low: float
    high: float


def compute_intervals(
    benchmark: type[Benchmark], items: Sequence[Item], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Compute percentile-bootstrap intervals, resampling images with all their answers.

    Answers about one image are not independent; resampling answers would give intervals that are too narrow.

    Args:
        benchmark: Whose metrics they are.
        items: Scored answers of one model.
        level: Share of the resamples inside the interval.
        resamples: Number of resamples.
        seed: Of the resampling. Equal images, in any order, give equal resamples for every model.

    Returns:
        Intervals by metric key; a count has none.

    Raises:
        ValueError: If there are no items, or ``level`` or ``resamples`` is out of range.
    """
    check_bootstrap(level=level, resamples=resamples)
    replicates = _replicate(benchmark, items, resamples=resamples, seed=seed)
    return {
        key: interval_of(value, replicates[key], level) for key, value in compute_metrics(benchmark, items).items() if key in replicates
    }


def compute_differences(
    benchmark: type[Benchmark],
    items: Sequence[Item],
    baseline: Sequence[Item],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute intervals of each metric less the baseline's, both on the same resampled images.

    What is hard about an image is hard for both models, so this is narrower than two intervals side by side suggest.

    Raises:
        ValueError: As ``compute_intervals``, or if the two are not about the same questions.
    """
    check_bootstrap(level=level, resamples=resamples)
    if {item.id for item in items} != {item.id for item in baseline}:
        raise UserError(f"{benchmark.name}: the models answered different questions ({len(items)} and {len(baseline)} answers)")
    ours, theirs = (_replicate(benchmark, those, resamples=resamples, seed=seed) for those in (items, baseline))
    values, before = compute_metrics(benchmark, items), compute_metrics(benchmark, baseline)
    # A metric that only one of them has, such as the mean of a type whose ratings can't be read, has no difference.
    shared = [key for key in values if key in ours and key in theirs]
    return {key: interval_of(values[key] - before[key], ours[key] - theirs[key], level) for key in shared}


def check_bootstrap(*, level: float, resamples: int) -> None:
    """Refuse settings that give no interval.

    Raises:
        ValueError: If ``level`` is not between 0 and 1, or there are fewer than 100 resamples.
    """
    if not 0 < level < 1 or resamples < 100:
        raise UserError(f"level is {level} and resamples {resamples}; expected a share between 0 and 1, and at least 100")


def _replicate(benchmark: type[Benchmark], items: Sequence[Item], *, resamples: int, seed: int) -> dict[str, Array]:
    """Return (S,) values of each metric."""
    if not items:
        raise UserError("there are no scored answers")
    found: dict[str, Array] = {}
    for name, unit in (("image", unit_of), ("cluster", _cluster)):
        chosen = {key for key, metric in benchmark.metrics.items() if metric.resampled == name}
        if chosen:
            values = evaluate_formulas(benchmark, resample(add_up(items, unit), resamples=resamples, seed=seed))
            found |= {key: value for key, value in values.items() if key.split("/")[-1] in chosen}
    return found


def resample(sums: Sums, *, resamples: int, seed: int) -> Sums:
    """Draw the rows of sums with replacement, S times."""
    number = len(sums.totals)
    rng = np.random.default_rng(seed)
    totals = []
    for start in range(0, resamples, _CHUNK):
        # How often each image is drawn in I draws with replacement; chunks bound the memory for large I.
        counts = rng.multinomial(number, np.full(number, 1 / number), size=min(_CHUNK, resamples - start))
        totals.append(counts @ sums.totals)
    return Sums(sums.columns, np.concatenate(totals))


def unit_of(item: Item) -> tuple[str, str]:
    """What is resampled as one: an image, or a question without one."""
    return ("", item.id) if item.image is None else (item.image, "")


def _cluster(item: Item) -> tuple[str, str]:
    """What is resampled as one where a metric joins answers about several images."""
    return (item.cluster, "") if item.cluster else unit_of(item)


def interval_of(value: float, replicates: Array, level: float) -> Interval:
    """Return a value with the range of its (S,) replicates; where one is NaN, the metric has none there."""
    replicates = replicates[~np.isnan(replicates)]
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))

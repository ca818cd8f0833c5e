"""Bootstrap intervals: against a plain resampling of images, a formula, and how often they hold the truth."""

import dataclasses
from collections.abc import Sequence
from random import Random
from typing import ClassVar

import numpy as np
import pytest

from mmalign.evaluation.benchmark import Benchmark, compute_metrics
from mmalign.evaluation.intervals import compute_differences, compute_intervals
from mmalign.evaluation.items import Item
from mmalign.evaluation.metrics import Metric, combine, count, harmonic_mean, ratio
from mmalign.evaluation.yes_no import binary_values

PRECISION, RECALL = ratio("right_yes", "said_yes"), ratio("right_yes", "are_yes")


class Plain(Benchmark):
    """Metrics of all answers together."""

    name = "x"
    title = "X"
    metrics: ClassVar = {
        "accuracy": Metric("Accuracy", formula=ratio("right", "answers")),
        "precision": Metric("Precision", formula=PRECISION),
        "recall": Metric("Recall", formula=RECALL),
        "f1": Metric("F1", formula=combine(harmonic_mean, PRECISION, RECALL)),
        "unknown": Metric("Unknown", formula=count("unknown"), resampled=None),
        "pairs": Metric("Pairs", formula=ratio("pair_right", "pair"), resampled="cluster"),
    }


def build_items(num_images: int, *, per_image: int, share: float, seed: int = 0, spread: float = 0.0) -> list[Item]:
    """Yes-or-no answers, right with a probability that varies by image."""
    rng = Random(seed)
    items = []
    for image in range(num_images):
        p = share + rng.choice([-spread, spread])
        for number in range(per_image):
            label, right = number % 2 == 0, rng.random() < p
            values = binary_values(is_yes=label, reply=label == right)
            items.append(build_item(f"{image}/{number}", f"{image:04}.png", values))
    return items


def build_item(identifier: str, image: str | None, values: dict[str, float]) -> Item:
    return Item(id=identifier, image=image, question="", response="", label="", correct=None, values=values)


def resample_plainly(items: Sequence[Item], *, resamples: int, seed: int) -> dict[str, list[float]]:
    """The bootstrap as its definition says it: draw images, take all answers about each, compute anew."""
    by_image: dict[str, list[Item]] = {}
    for item in items:
        by_image.setdefault(item.image, []).append(item)
    images, rng = list(by_image), Random(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        sample = [item for image in rng.choices(images, k=len(images)) for item in by_image[image]]
        for key, value in compute_metrics(Plain, sample).items():
            drawn.setdefault(key, []).append(value)
    return drawn


def test_agrees_with_plain_resampling() -> None:
    items = build_items(30, per_image=6, share=0.7, spread=0.2)
    got = compute_intervals(Plain, items, resamples=4000)
    plain = resample_plainly(items, resamples=2000, seed=1)
    assert got.keys() == plain.keys() - {"x/unknown"}
    for key, interval in got.items():
        # Two random sets of resamples: the ends' own error at these numbers is about 0.003.
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(plain[key], [0.025, 0.975])), abs=0.015), key
        assert interval.low <= interval.value <= interval.high


def test_agrees_with_the_normal_interval_of_a_share() -> None:
    items = build_items(400, per_image=1, share=0.8)
    interval = compute_intervals(Plain, items, resamples=4000)["x/accuracy"]
    half = 1.96 * (interval.value * (1 - interval.value) / 400) ** 0.5
    assert (interval.low, interval.high) == pytest.approx((interval.value - half, interval.value + half), abs=0.006)


def test_answers_about_one_image_are_not_independent() -> None:
    """Copies of an answer tell nothing new: the interval is that of the images."""
    once = build_items(100, per_image=1, share=0.7)
    copies = [build_item(f"{item.id}-{n}", item.image, dict(item.values)) for item in once for n in range(9)]
    assert compute_intervals(Plain, copies)["x/accuracy"] == pytest.approx(compute_intervals(Plain, once)["x/accuracy"])


def test_questions_without_an_image_stand_alone() -> None:
    with_images = build_items(50, per_image=1, share=0.7)
    without = [build_item(item.id, None, dict(item.values)) for item in with_images]
    bounds = compute_intervals(Plain, without)["x/accuracy"]
    assert bounds.low < bounds.value < bounds.high
    assert bounds.high - bounds.low == pytest.approx(2 * 1.96 * (bounds.value * (1 - bounds.value) / 50) ** 0.5, rel=0.15)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        items = build_items(60, per_image=4, share=0.7, spread=0.2, seed=seed)
        interval = compute_intervals(Plain, items, resamples=300, seed=seed)["x/accuracy"]
        hits += interval.low <= 0.7 <= interval.high
    # 200 trials at 95%: the standard error is 1.5 points, and the percentile interval is known to fall short by a point or two.
    assert 0.89 <= hits / 200 <= 0.99


def test_seed_and_order() -> None:
    items = build_items(20, per_image=3, share=0.6)
    first = compute_intervals(Plain, items)
    assert compute_intervals(Plain, items[::-1]) == first
    assert compute_intervals(Plain, items, seed=1) != first
    narrow = compute_intervals(Plain, items, level=0.5)["x/accuracy"]
    assert first["x/accuracy"].low < narrow.low < narrow.high < first["x/accuracy"].high


def test_differences_are_paired() -> None:
    items = build_items(80, per_image=4, share=0.6, spread=0.3)
    same = compute_differences(Plain, items, items)
    assert all(tuple(interval) == (0.0, 0.0, 0.0) for interval in same.values())
    # One answer more is right on each image: the same everywhere, so without spread.
    worse, better = (
        [build_item(i.id, i.image, {"right": first if i.id.endswith("/0") else i.values["right"], "answers": 1.0}) for i in items]
        for first in (0.0, 1.0)
    )
    assert tuple(compute_differences(Plain, better, worse)["x/accuracy"]) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match=r"different questions \(320 and 319 answers\)"):
        compute_differences(Plain, items, items[1:])


def test_nothing_of_nothing_is_zero() -> None:
    item = build_item("1", "a", binary_values(is_yes=False, reply=False))
    assert compute_intervals(Plain, [item])["x/f1"] == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no scored answers"):
        compute_intervals(Plain, [])


@pytest.mark.parametrize("options", [{"level": 1.0}, {"level": 0.0}, {"resamples": 99}])
def test_settings_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected a share between 0 and 1, and at least 100"):
        compute_intervals(Plain, build_items(3, per_image=1, share=0.5), **options)  # type: ignore[arg-type]


def test_what_joins_images_is_resampled_by_cluster() -> None:
    """Twenty pairs over two images each, all in four clusters that are right or wrong as a whole: there are four draws and not forty."""
    items = []
    for i in range(40):
        values = {"right": i % 2, "answers": 1} | ({"pair": 1, "pair_right": float(i < 20)} if i % 2 == 0 else {})
        item = build_item(str(i), f"{i}.png", values)
        items.append(dataclasses.replace(item, cluster=f"set {i // 10}"))
    got = compute_intervals(Plain, items, resamples=4000)
    assert got["x/pairs"] == (0.5, 0.0, 1.0)
    assert got["x/accuracy"].high - got["x/accuracy"].low == pytest.approx(2 * 1.96 * (0.25 / 40) ** 0.5, rel=0.15)

"""Agreement of two judges: kappas by hand and by a second derivation, what can't be read, resampled images."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from mmalign.evaluation.agreement import compute_agreement, compute_kappa
from mmalign.evaluation.decisions import RIGHT_OR_WRONG, Decision
from mmalign.evaluation.items import Item

STEPS = ("0", "1", "2", "3")
RATING = Decision(STEPS, lambda item: str(item.values["rating"]) if "rating" in item.values else None, ordered=True)


def judged(verdicts: Sequence[bool | None], *, images: Sequence[str] | None = None) -> dict[str, Item | None]:
    names = images or [f"{i}.png" for i in range(len(verdicts))]
    return {
        str(i): Item(id=str(i), image=name, question="", response="", label="", correct=verdict, values={})
        for i, (verdict, name) in enumerate(zip(verdicts, names, strict=True))
    }


def rated(ratings: Sequence[int | None]) -> dict[str, Item | None]:
    return {
        i: Item(id=i, image=i, question="", response="", label="", correct=None, values={} if r is None else {"rating": r})
        for i, r in ((f"{i}", r) for i, r in enumerate(ratings))
    }


def values(metrics: Mapping[str, object]) -> dict[str, float]:
    return {name: interval.value for name, interval in metrics.items()}  # type: ignore[attr-defined]


def test_kappa_by_hand() -> None:
    """20 + 15 of 50 agree: .7; by chance (25 x 30 + 25 x 20) / 50^2 = .5; (.7 - .5) / (1 - .5) = .4."""
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    got = compute_agreement(RIGHT_OR_WRONG, judged(first), judged(second))
    assert got.table == ((20, 5), (10, 15))
    assert values(got.metrics) == pytest.approx({"accuracy": 0.7, "kappa": 0.4}, abs=1e-12)


def test_weighted_kappa_is_that_of_all_pairs() -> None:
    """Squared distances of the decisions on one answer, over those of any two answers."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, 60)
    b = np.clip(a + rng.integers(-1, 2, 60), 0, 3)
    got = values(compute_agreement(RATING, rated(a.tolist()), rated(b.tolist())).metrics)
    assert got["weighted_kappa"] == pytest.approx(1 - np.mean((a - b) ** 2) / np.mean((a[:, None] - b[None, :]) ** 2), abs=1e-12)
    assert got["kappa"] == pytest.approx(1 - np.mean(a != b) / np.mean(a[:, None] != b[None, :]), abs=1e-12)
    assert got["weighted_kappa"] > got["kappa"]


def test_what_cannot_be_read_is_counted_and_left_out() -> None:
    first: dict[str, Item | None] = {**rated([0, 1, None, 3, None]), "5": None}
    second: dict[str, Item | None] = {**rated([0, 2, 2, None, None]), "5": None}
    got = compute_agreement(RATING, first, second)
    assert got.unreadable == (3, 3, 2)
    assert got.table == ((1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 0), (0, 0, 0, 0))
    assert got.metrics["accuracy"].value == 0.5


def test_one_value_alone_has_no_kappa() -> None:
    got = compute_agreement(RIGHT_OR_WRONG, judged([True, True]), judged([True, True]))
    assert values(got.metrics) == {"accuracy": 1.0}
    # Where one judge alone never changes its mind, agreement is what chance would give.
    assert values(compute_agreement(RIGHT_OR_WRONG, judged([True, True]), judged([True, False])).metrics) == {"accuracy": 0.5, "kappa": 0.0}


def test_images_are_resampled_with_all_their_answers() -> None:
    first, second = [True, False] * 20, [True, True] * 20
    alone = compute_agreement(RIGHT_OR_WRONG, judged(first), judged(second)).metrics["accuracy"]
    # 40 answers, each right with probability 1/2: a standard error of .079.
    assert (alone.low, alone.high) == (pytest.approx(0.345, abs=0.03), pytest.approx(0.655, abs=0.03))
    images = [f"{i // 2}" for i in range(40)]
    paired = compute_agreement(RIGHT_OR_WRONG, judged(first, images=images), judged(second, images=images)).metrics["accuracy"]
    # Every image holds one of each.
    assert (paired.value, paired.low, paired.high) == (0.5, 0.5, 0.5)


def test_kappas_of_several_tables_at_once() -> None:
    tables = np.array([[[20.0, 5.0], [10.0, 15.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [3.0, 0.0]], [[4.0, 0.0], [0.0, 0.0]]])
    got = compute_kappa(tables, 1 - np.eye(2))
    assert got[:3].tolist() == pytest.approx([0.4, 1.0, -1.0])
    assert np.isnan(got[3])


def test_other_answers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the judges judged different answers \(2 and 3, 2 shared\)"):
        compute_agreement(RIGHT_OR_WRONG, judged([True, True]), judged([True, True, True]))
    with pytest.raises(ValueError, match="no reply to 1 answers can be read of both judges"):
        compute_agreement(RIGHT_OR_WRONG, judged([None]), judged([True]))

"""Voting: projection, weights and fusion by hand."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from mmalign.difficulty.fuse import check_votes
from mmalign.difficulty.voting import fixed_weights, fuse_gaps, fuse_signs, parse_weights, preference_accuracy, project_gaps, vote_weights
from mmalign.options.difficulty import VoteOptions


def test_projection_by_hand() -> None:
    # mean 0, population std sqrt(2/3): z = +-1.2247, Phi(1.2247) = 0.889664
    got = project_gaps(np.array([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(got, [0.110336, 0.5, 0.889664], atol=1e-6)


def test_projection_is_monotone_and_shift_and_scale_free() -> None:
    gaps = np.random.default_rng(0).normal(size=50)
    got = project_gaps(gaps)
    assert (np.argsort(got) == np.argsort(gaps)).all()
    np.testing.assert_allclose(project_gaps(3 * gaps + 7), got, atol=1e-12)


def test_constant_gaps_are_neutral() -> None:
    assert project_gaps(np.full(4, 2.5)).tolist() == [0.5] * 4
    # Three times 0.1 is not 0.3: numpy's std of these is 1e-17, a step of which would be a whole standard deviation.
    gaps = np.full(3, 0.1)
    assert gaps.std() > 0
    assert project_gaps(gaps).tolist() == [0.5] * 3
    easiness, difficulty, statistics = fuse_gaps({"contrastive": gaps, "generative": -gaps}, ["a", "b", "c"])
    assert difficulty.tolist() == [0.5] * 3
    assert (easiness["generative"].tolist(), statistics["generative"].std) == ([0.5] * 3, 0.0)
    assert fuse_signs({"contrastive": gaps}, {"contrastive": 1.0}).tolist() == [0.0] * 3


def test_one_pair_is_neither_hard_nor_easy() -> None:
    _, difficulty, statistics = fuse_gaps({"contrastive": np.array([0.3]), "generative": np.array([-7.1])}, ["a"])
    assert difficulty.tolist() == [0.5]
    assert [statistics[name].weight for name in statistics] == [1.0, 0.0]


def test_a_tie_is_no_preference() -> None:
    assert preference_accuracy(np.array([1.0, 0.0, -1.0, 2.0])) == 0.5


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("accuracy", (2 / 3, 1 / 3)), ("above-chance", (1.0, 0.0)), ("equal", (0.5, 0.5))],
)
def test_weights_by_hand(weighting: str, expected: tuple[float, float]) -> None:
    got = vote_weights({"a": 1.0, "b": 0.5}, weighting=weighting)  # type: ignore[arg-type]
    assert (got["a"], got["b"]) == pytest.approx(expected)


def test_where_no_proxy_beats_chance_all_votes_are_equal() -> None:
    assert vote_weights({"a": 0.5, "b": 0.4}, weighting="above-chance") == {"a": 0.5, "b": 0.5}
    assert vote_weights({"a": 0.0, "b": 0.0}, weighting="accuracy") == {"a": 0.5, "b": 0.5}


def test_three_proxies() -> None:
    got = vote_weights({"a": 0.9, "b": 0.6, "c": 0.5}, weighting="accuracy")
    assert got == pytest.approx({"a": 0.45, "b": 0.3, "c": 0.25})


def test_unknown_weighting() -> None:
    with pytest.raises(ValueError, match="weighting is 'best'; expected one of accuracy, above-chance, equal"):
        vote_weights({"a": 1.0}, weighting="best")  # type: ignore[arg-type]


def test_fusion_by_hand() -> None:
    gaps = {"contrastive": np.array([1.0, 3.0]), "generative": np.array([2.0, -2.0])}
    easiness, difficulty, statistics = fuse_gaps(gaps, ["x", "y"])
    low, high = 0.158655, 0.841345
    np.testing.assert_allclose(easiness["contrastive"], [low, high], atol=1e-6)
    # accuracies 1 and 0.5: weights 2/3 and 1/3
    np.testing.assert_allclose(difficulty, [1 - (2 * low + high) / 3, 1 - (2 * high + low) / 3], atol=1e-6)
    assert statistics["contrastive"].weight == pytest.approx(2 / 3)
    assert (statistics["generative"].mean, statistics["generative"].std, statistics["generative"].accuracy) == (0.0, 2.0, 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gap_that_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(ValueError, match=f"the generative gap of pair 'y' is {value}; score it again or drop the pair"):
        fuse_gaps({"generative": np.array([0.0, value])}, ["x", "y"])


def test_fixed_weights_are_scaled_to_a_sum_of_one() -> None:
    fixed = parse_weights(["contrastive=0.6, generative=1.4"])
    assert fixed == {"contrastive": 0.6, "generative": 1.4}
    assert parse_weights(["contrastive=0.6", "generative=1.4"]) == fixed
    assert parse_weights([]) is None
    gaps = {"contrastive": np.array([1.0, 3.0]), "generative": np.array([2.0, -2.0])}
    _, difficulty, statistics = fuse_gaps(gaps, ["x", "y"], fixed=fixed)
    assert [statistics[name].weight for name in gaps] == pytest.approx([0.3, 0.7])
    low, high = 0.158655, 0.841345
    np.testing.assert_allclose(difficulty, [1 - (0.3 * low + 0.7 * high), 1 - (0.3 * high + 0.7 * low)], atol=1e-6)


def test_signed_fusion_by_hand() -> None:
    """Gaps 1, 3 have std 1, gaps 2, -2 have 2: 0.5 x 1 + 0.5 x 1 and 0.5 x 3 - 0.5 x 1. A constant proxy has no say."""
    gaps = {"a": np.array([1.0, 3.0]), "b": np.array([2.0, -2.0]), "c": np.array([5.0, 5.0])}
    np.testing.assert_allclose(fuse_signs(gaps, {"a": 0.5, "b": 0.5, "c": 0.0}), [1.0, 1.0])
    np.testing.assert_allclose(fuse_signs(gaps, {"a": 0.2, "b": 0.4, "c": 0.4}), [0.6, 0.2])


@pytest.mark.parametrize("text", ["contrastive", "contrastive=much", "=0.3", "contrastive=0.3,"])
def test_weights_that_cant_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="weights (hold|are of)"):
        fixed_weights(VoteOptions(weights=[text]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ["contrastive=1"]}, "weights are of contrastive; expected one for each proxy: contrastive, generative"),
        ({"weights": ["contrastive=0,generative=0"]}, "weights are contrastive=0, generative=0; expected numbers from 0"),
        ({"weights": ["contrastive=-1,generative=2"]}, "weights are contrastive=-1, generative=2; expected numbers from 0"),
        ({"extra_gaps": ["judge,judge"]}, "extra gap 'judge' is given twice"),
        ({"extra_gaps": ["fused"]}, "extra gap 'fused' is given twice or is one of contrastive, generative, fused"),
    ],
)
def test_votes_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_votes(Dataset.from_dict({"id": ["a"]}), VoteOptions(**options))
    with pytest.raises(ValueError, match="weights name a twice"):
        parse_weights(["a=1,a=2"])

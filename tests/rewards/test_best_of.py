"""The best of n: weights by hand, and every draw of n answers listed."""

import math
from itertools import combinations

import pytest

from mmalign.rewards.best_of import bound_divergence, expect_best, pick_weights


def test_weights_by_hand() -> None:
    """Of three answers the best is in two of three pairs, the middle one is the best of one pair."""
    assert pick_weights([1.0, 4.0, 2.0], 2) == pytest.approx([0, 2 / 3, 1 / 3])
    assert expect_best([1.0, 4.0, 2.0], [1.0, 4.0, 2.0], 2) == pytest.approx(10 / 3)
    # Four answers, two of them alike: C(1, 1), C(2, 1) and C(3, 1) of six pairs; the upper two share 5/6.
    assert pick_weights([0.0, 3.0, 1.0, 3.0], 2) == pytest.approx([0, 5 / 12, 1 / 6, 5 / 12])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_weights_equal_all_draws(n: int) -> None:
    scores, values = [0.3, -1.0, 2.5, 0.9, 2.4], [5.0, 1.0, -2.0, 7.0, 0.5]
    picked = [max(draw, key=scores.__getitem__) for draw in combinations(range(5), n)]
    assert expect_best(values, scores, n) == pytest.approx(sum(values[i] for i in picked) / math.comb(5, n))
    assert sum(pick_weights(scores, n)) == pytest.approx(1)
    # Where all scores are alike, a pick is a random answer.
    assert pick_weights([1.0] * 5, n) == pytest.approx([0.2] * 5)


def test_n_is_refused_beyond_the_answers() -> None:
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"n is {n}; expected 1 to 2, the number of answers"):
            pick_weights([1.0, 2.0], n)


def test_divergence() -> None:
    assert bound_divergence(1) == 0
    assert bound_divergence(4) == pytest.approx(0.636294361120)

"""Means, intervals and paired tests over seeds, by hand."""

import math

import pytest

from scripts.studies.page import compare, estimate


def test_an_estimate_by_hand() -> None:
    """1, 2, 3: mean 2, standard deviation 1, and Student's t of two degrees of freedom is 4.3027."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert str(found) == "2.0 ± 2.5"


def test_one_seed_has_no_interval() -> None:
    assert str(estimate([4.25])) == "4.2"


def test_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="no seed"):
        estimate([])


def test_arms_are_compared_on_the_seeds_that_both_have() -> None:
    """Differences 1, 2, 3 give t = 2 / (1 / sqrt 3) = 3.4641, p = 0.0742 with two degrees of freedom."""
    found = compare({1: 2.0, 2: 4.0, 3: 6.0, 4: 99.0}, {1: 1.0, 2: 2.0, 3: 3.0, 5: 0.0})
    assert found.mean == 2.0
    # Two degrees of freedom: p = 1 - t / sqrt(2 + t^2).
    t = 2 * math.sqrt(3)
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert str(found) == "+2.0 ± 2.5 (p = 0.074)"


def test_equal_arms_differ_by_nothing() -> None:
    found = compare({1: 5.0, 2: 6.0}, {1: 5.0, 2: 6.0})
    assert (found.mean, found.p_value) == (0.0, 1.0)


def test_arms_that_always_differ_by_as_much_do_differ() -> None:
    assert compare({1: 5.0, 2: 6.0}, {1: 4.0, 2: 5.0}).p_value == 0.0

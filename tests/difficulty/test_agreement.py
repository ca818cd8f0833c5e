"""Agreement of proxies by hand, and against the definition."""

import numpy as np
import pytest

from mmalign.difficulty.agreement import cohens_kappa, compare_proxies, describe_sources, rank_correlation, sign_agreement

A = np.array([1.0, 2.0, -1.0, 3.0, -2.0, 0.0, 4.0, 5.0, -3.0, 6.0])
B = np.array([2.0, -1.0, -2.0, 1.0, 3.0, -4.0, 5.0, 6.0, -5.0, 4.0])


def test_signs_and_kappa_by_hand() -> None:
    """Both positive 5, both not 3, A alone 1, B alone 1: agreement 0.8, each positive in 0.6, chance 0.36 + 0.16 = 0.52."""
    assert sign_agreement(A, B) == pytest.approx(0.8)
    assert cohens_kappa(A, B) == pytest.approx(0.28 / 0.48)


def test_kappa_at_its_ends() -> None:
    assert cohens_kappa(A, A) == 1
    balanced = np.array([1.0, -1.0, 1.0, -1.0])
    assert cohens_kappa(balanced, -balanced) == -1
    assert cohens_kappa(balanced, np.array([1.0, 1.0, -1.0, -1.0])) == 0
    # A proxy that always prefers the chosen answer agrees as often as chance has it.
    assert cohens_kappa(balanced, np.ones(4)) == 0
    assert cohens_kappa(np.ones(4), np.full(4, 2.0)) is None


def test_rank_correlation_by_hand() -> None:
    """Without ties 1 - 6 sum d^2 / (n (n^2 - 1)): ranks 1 2 3 4 5 and 2 1 4 3 5 differ by 4 in squares, 1 - 24/120."""
    first = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert rank_correlation(first, np.array([2.0, 1.0, 4.0, 3.0, 5.0])) == pytest.approx(0.8)
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(first, np.zeros(5)) is None
    # A source of one pair has no order.
    assert rank_correlation(first[:1], first[:1]) is None


def test_rank_correlation_with_ties_is_pearsons_of_mean_ranks() -> None:
    """Ranks 1.5 1.5 3 4 and 1 2.5 2.5 4: deviations -1 -1 .5 1.5 and -1.5 0 0 1.5, so 3.75 / sqrt(4.5 x 4.5)."""
    assert rank_correlation(np.array([1.0, 1.0, 2.0, 3.0]), np.array([0.0, 5.0, 5.0, 9.0])) == pytest.approx(3.75 / 4.5)


def test_each_two_proxies_and_each_source() -> None:
    found = compare_proxies({"a": A, "b": B, "c": -A})
    assert [one["proxies"] for one in found] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert found[1]["rank_correlation"] == pytest.approx(-1)
    sources = describe_sources({"a": A, "b": B}, np.linspace(0, 0.9, 10), ["x"] * 4 + ["y"] * 6)
    assert list(sources) == ["x", "y"]
    assert (sources["x"]["num_pairs"], sources["x"]["accuracy"]) == (4, {"a": 0.75, "b": 0.5})
    assert sources["x"]["mean_difficulty"] == pytest.approx(0.15)
    # A is + + - +, B is + - - +: 3 of 4, chance 0.75 x 0.5 + 0.25 x 0.5.
    agreement = sources["x"]["proxy_agreement"][0]
    assert (agreement["sign_agreement"], agreement["kappa"]) == (0.75, pytest.approx(0.5))

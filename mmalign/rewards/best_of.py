"""What the best of n answers is worth, told from N >= n saved ones.

Shape legend: N = answers to a prompt.
"""

import math
from collections.abc import Sequence

from mmalign.errors import UserError


def pick_weights(scores: Sequence[float], n: int) -> list[float]:
    """How likely each answer is the best-scored one of n that are drawn from all N without replacement; equal scores share alike.

    The weighted sum of any value of the answers is an unbiased estimate of that value's mean for the best of n fresh samples (WebGPT,
    arXiv:2112.09332, Appendix I): the answer with ``i`` lower ones is picked in C(i, n - 1) of C(N, n) draws.

    Args:
        scores: (N,) what the pick is made by.
        n: Answers that are picked from.

    Returns:
        (N,) weights that add up to 1.

    Raises:
        ValueError: If n is not 1 to N.
    """
    if not 1 <= n <= len(scores):
        raise UserError(f"n is {n}; expected 1 to {len(scores)}, the number of answers")
    draws = math.comb(len(scores), n)
    held: dict[float, list[float]] = {}
    for lower, score in enumerate(sorted(scores)):
        held.setdefault(score, []).append(math.comb(lower, n - 1) / draws)
    return [sum(held[score]) / len(held[score]) for score in scores]


def expect_best(values: Sequence[float], scores: Sequence[float], n: int) -> float:
    """Estimate the mean value of the best-scored of n samples. Arguments and errors as in ``pick_weights``; ``values`` is (N,)."""
    return sum(weight * value for weight, value in zip(pick_weights(scores, n), values, strict=True))


def bound_divergence(n: int) -> float:
    """How far picking the best of n moves from sampling: KL <= log n - (n - 1) / n nats (arXiv:2401.01879)."""
    return math.log(n) - (n - 1) / n

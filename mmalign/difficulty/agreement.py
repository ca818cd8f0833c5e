"""How far proxies agree: on the sign of the gap, beyond chance, and in rank.

Shape legend: B = pairs.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from mmalign.difficulty.voting import Gaps, preference_accuracy


def sign_agreement(first: Gaps, second: Gaps) -> float:
    """Return the share of pairs on which both proxies prefer the chosen answer, or neither does."""
    return float(((first > 0) == (second > 0)).mean())


def cohens_kappa(first: Gaps, second: Gaps) -> float | None:
    """Compute Cohen's kappa of the two proxies' verdicts (Cohen 1960): (agreement - chance) / (1 - chance).

    Chance is the agreement of two independent proxies that prefer the chosen answer as often as these do.

    Returns:
        1 = the same verdicts, 0 = as by chance; None where both proxies say one and the same of every pair, which leaves no chance.
    """
    p, q = preference_accuracy(first), preference_accuracy(second)
    chance = p * q + (1 - p) * (1 - q)
    return None if chance == 1 else (sign_agreement(first, second) - chance) / (1 - chance)


def rank_correlation(first: Gaps, second: Gaps) -> float | None:
    """Compute Spearman's rank correlation, equal gaps sharing their mean rank; None where all gaps of a proxy are equal."""
    constant = any((gaps == gaps[0]).all() for gaps in (first, second))
    return None if constant else float(stats.spearmanr(first, second).statistic)


def compare_proxies(gaps: Mapping[str, Gaps]) -> list[dict[str, Any]]:
    """Compare each two proxies over the same pairs.

    Args:
        gaps: (B,) for each proxy.

    Returns:
        ``proxies``, ``sign_agreement``, ``kappa``, ``rank_correlation`` of each two.
    """
    return [
        {
            "proxies": [one, other],
            "sign_agreement": sign_agreement(gaps[one], gaps[other]),
            "kappa": cohens_kappa(gaps[one], gaps[other]),
            "rank_correlation": rank_correlation(gaps[one], gaps[other]),
        }
        for one, other in itertools.combinations(gaps, 2)
    ]


def describe_sources(gaps: Mapping[str, Gaps], difficulty: Gaps, sources: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Say for each source how many pairs it has, how difficult they are, how often each proxy is right, and how far proxies agree.

    Args:
        gaps: (B,) for each proxy.
        difficulty: (B,).
        sources: (B,) names.
    """
    names = np.array(sources)
    found = {}
    for source in sorted(set(sources)):
        inside = names == source
        own = {name: values[inside] for name, values in gaps.items()}
        found[source] = {
            "num_pairs": int(inside.sum()),
            "mean_difficulty": float(difficulty[inside].mean()),
            "accuracy": {name: preference_accuracy(values) for name, values in own.items()},
            "proxy_agreement": compare_proxies(own),
        }
    return found

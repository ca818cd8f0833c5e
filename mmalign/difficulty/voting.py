"""Distribution-aware voting: gaps of several proxies to one difficulty per pair (DA-DPO, arXiv:2601.00623).

The paper's text names the steps; its formula could not be read, so the weights here are a reconstruction: each proxy votes in
proportion to how often it prefers the chosen answer.

Shape legend: B = pairs, P = proxies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mmalign.errors import UserError
from mmalign.options.difficulty import VoteOptions, Weighting

Gaps = NDArray[np.float64]
PROXIES = ("contrastive", "generative")
"""Those that mmalign scores."""
FUSED = "fused"


def name_proxies(votes: VoteOptions) -> tuple[str, ...]:
    """Name all that vote: mmalign's own, and others whose gaps are the columns ``gap_NAME`` of the pairs.

    Raises:
        ValueError: If a name is given twice or is taken.
    """
    extra = [name.strip() for text in votes.extra_gaps for name in text.split(",") if name.strip()]
    for name in extra:
        if name in (*PROXIES, FUSED) or extra.count(name) > 1:
            raise UserError(f"extra gap {name!r} is given twice or is one of {', '.join((*PROXIES, FUSED))}; rename its column gap_{name}")
    return (*PROXIES, *extra)


def fixed_weights(votes: VoteOptions) -> dict[str, float] | None:
    """Read the weights of all proxies that stand for ``weighting``; None if not given.

    Raises:
        ValueError: If they don't fit the proxies, or a weighting is named too.
    """
    weights = parse_weights(votes.weights)
    if weights is None:
        return None
    if votes.weighting != "accuracy":
        raise UserError(f"--weighting {votes.weighting} and --weights exclude each other; leave one out")
    proxies = name_proxies(votes)
    if set(weights) != set(proxies):
        raise UserError(f"weights are of {', '.join(weights)}; expected one for each proxy: {', '.join(proxies)}")
    if not all(math.isfinite(value) and value >= 0 for value in weights.values()) or not sum(weights.values()) > 0:
        given = ", ".join(f"{name}={value:g}" for name, value in weights.items())
        raise UserError(f"weights are {given}; expected numbers from 0 that are not all 0")
    return weights


def parse_weights(texts: Sequence[str]) -> dict[str, float] | None:
    """Read ``NAME=WEIGHT`` items, several in one text separated by commas; None where there are none.

    Raises:
        ValueError: If an item is no name and number, or a name stands twice.
    """
    weights: dict[str, float] = {}
    for item in (item.strip() for text in texts for item in text.split(",")):
        name, _, value = (part.strip() for part in item.partition("="))
        try:
            number = float(value)
        except ValueError as error:
            raise UserError(f"weights hold {item!r}; expected NAME=NUMBER, such as contrastive=0.3,generative=0.7") from error
        if name in weights:
            raise UserError(f"weights name {name} twice; name it once")
        weights[name] = number
    return weights or None


@dataclass(frozen=True)
class ProxyStatistics:
    """One proxy over the pairs that vote together."""

    mean: float
    std: float
    accuracy: float
    weight: float


def project_gaps(gaps: Gaps) -> Gaps:
    """Project gaps to easiness: Phi((g - mean) / std), std with ddof 0; all 0.5 where the gaps are constant.

    Args:
        gaps: (B,) score(chosen) - score(rejected).

    Returns:
        (B,) in (0, 1), 1 = easy; monotone in the gap, so a pair whose proxy prefers the rejected answer is hard.
    """
    std = spread(gaps)
    if std == 0:
        return np.full_like(gaps, 0.5)
    return ndtr((gaps - gaps.mean()) / std)


def spread(gaps: Gaps) -> float:
    """Compute the population std; exactly 0 where all gaps are equal, whose sum rounds: numpy's std of three times 0.1 is 1e-17."""
    return float(gaps.std()) if gaps.min() < gaps.max() else 0.0


def fuse_signs(gaps: Mapping[str, Gaps], weights: Mapping[str, float]) -> Gaps:
    """Fuse gaps as they are: sum of weight x gap / std, so that below zero the proxies together prefer the rejected answer.

    Unlike the easiness it is not centred: where most gaps are positive, a pair may be hard and its label not in doubt. Ours.

    Args:
        gaps: (B,) for each proxy; one whose gaps are all equal has no say.
        weights: Of the proxies, with sum 1.

    Returns:
        (B,) in standard deviations.
    """
    scales = {name: spread(values) for name, values in gaps.items()}
    return sum(
        (weights[name] * values / scales[name] for name, values in gaps.items() if scales[name] > 0),
        np.zeros_like(next(iter(gaps.values()))),
    )


def preference_accuracy(gaps: Gaps) -> float:
    """Return the share of pairs whose chosen answer the proxy prefers."""
    return float((gaps > 0).mean())


def vote_weights(accuracies: Mapping[str, float], *, weighting: Weighting, fixed: Mapping[str, float] | None = None) -> dict[str, float]:
    """Turn accuracies into weights that sum to 1, or scale ``fixed`` ones so.

    ``accuracy``: a_k / sum a. ``above-chance``: the same of max(a_k - 0.5, 0), which gives a guessing proxy no vote.
    Where every weight would be 0, all are equal.

    Raises:
        ValueError: If the weighting is unknown.
    """
    if weighting not in get_args(Weighting):
        raise UserError(f"weighting is {weighting!r}; expected one of {', '.join(get_args(Weighting))}")
    floor = 0.5 if weighting == "above-chance" else 0.0
    if fixed is not None:
        return {name: fixed[name] / sum(fixed.values()) for name in accuracies}
    raw = {name: 1.0 if weighting == "equal" else max(value - floor, 0.0) for name, value in accuracies.items()}
    total = sum(raw.values())
    return {name: value / total if total else 1 / len(raw) for name, value in raw.items()}


def fuse_gaps(
    gaps: Mapping[str, Gaps], ids: Sequence[str], *, weighting: Weighting = "accuracy", fixed: Mapping[str, float] | None = None
) -> tuple[dict[str, Gaps], Gaps, dict[str, ProxyStatistics]]:
    """Fuse the proxies of pairs that vote together.

    Args:
        gaps: (B,) for each proxy.
        ids: (B,) pair ids, for messages.
        weighting: What a proxy's vote weighs.
        fixed: Weights by proxy, instead.

    Returns:
        Easiness by proxy, (B,) each; difficulty, (B,) in [0, 1], 1 = hard; statistics by proxy.

    Raises:
        ValueError: If a gap is not finite; the message names pair and proxy.
    """
    for name, values in gaps.items():
        broken = np.flatnonzero(~np.isfinite(values))
        if len(broken):
            raise UserError(f"the {name} gap of pair {ids[broken[0]]!r} is {values[broken[0]]}; score it again or drop the pair")
    accuracies = {name: preference_accuracy(values) for name, values in gaps.items()}
    weights = vote_weights(accuracies, weighting=weighting, fixed=fixed)
    easiness = {name: project_gaps(values) for name, values in gaps.items()}
    fused = sum((weights[name] * easiness[name] for name in gaps), np.zeros(len(ids)))
    statistics = {
        name: ProxyStatistics(float(values.mean()), spread(values), accuracies[name], weights[name]) for name, values in gaps.items()
    }
    return easiness, np.clip(1 - fused, 0.0, 1.0), statistics

"""Where preference training moved probability: the three D of 3D-Properties (arXiv:2406.07327).

Shape legend: P = pairs; (P, 2) holds chosen and rejected. h = log p under the policy - log p under the start.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.errors import UserError

DROP_PER_TOKEN = -1.0
"""Nats per token below which a rejected response counts as dropped: each token e times less likely than at the start. Ours."""


@dataclass(frozen=True)
class Movement:
    """How a set of pairs moved between the start and the policy."""

    num_pairs: int
    chosen: float
    """Mean h of chosen responses, in nats."""
    rejected: float
    chosen_per_token: float
    """Mean over responses of h / tokens."""
    rejected_per_token: float
    degraded: float
    """Share of chosen responses that are less likely than at the start: degradation."""
    dropped: float
    """Share of rejected responses whose tokens became e times less likely on average: drastic drop."""
    rejected_below: float
    """Share of rejected responses that are less likely than at the start."""
    log_gradient_ratio: float
    """Mean of log p(chosen) - log p(rejected) under the policy. By probability, DPO's gradient at the rejected response is e to this
    times that at the chosen one, so that a dropped response soon has the only say."""
    log_gradient_ratio_start: float


def measure_movement(policy: Tensor, start: Tensor, lengths: Tensor) -> Movement:
    """Count the three D; on pairs that were not trained on, the same numbers are the dispersion.

    Args:
        policy: (P, 2) summed log-probabilities under the policy.
        start: (P, 2) under the model that training started from.
        lengths: (P, 2) tokens.

    Raises:
        ValueError: If the shapes disagree.
    """
    if not policy.shape == start.shape == lengths.shape:
        raise UserError(f"shapes {tuple(policy.shape)}, {tuple(start.shape)} and {tuple(lengths.shape)}; expected (pairs, 2) of each")
    moved = policy.double() - start.double()
    by_token = moved / lengths.clamp(min=1)
    (chosen, rejected), (chosen_by_token, rejected_by_token) = (values.mean(0).tolist() for values in (moved, by_token))
    degraded, below = (moved < 0).double().mean(0).tolist()
    gap, gap_at_start = (float((values[:, 0] - values[:, 1]).mean()) for values in (policy.double(), start.double()))
    return Movement(
        num_pairs=len(policy),
        chosen=chosen,
        rejected=rejected,
        chosen_per_token=chosen_by_token,
        rejected_per_token=rejected_by_token,
        degraded=degraded,
        dropped=float((by_token[:, 1] < DROP_PER_TOKEN).double().mean()),
        rejected_below=below,
        log_gradient_ratio=gap,
        log_gradient_ratio_start=gap_at_start,
    )


def per_token(policy: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
    """(P, 2) h / tokens, for drawings."""
    return torch.where(lengths > 0, (policy.double() - start.double()) / lengths.clamp(min=1), 0.0)

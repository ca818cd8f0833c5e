"""Objectives over N scored responses of one prompt. Rewards are the kernel's: links of log-ratios, times beta.

Rows are ragged: ``mask`` is True where there is a response. What stands elsewhere, NaN included, changes neither values nor gradients.
A row with fewer than two responses has nothing to compare and gives 0.

Shape legend: B = prompts, N = most responses of a prompt. Every mask and every list is (B, N), every loss (B,), unreduced.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.losses.coefficients import discount_weights, rank_by, swap_weights

RankedBy = Literal["reward", "score"]


def list_cross_entropy(rewards: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Compute the cross-entropy of the rewards' softmax to a target distribution (ADPO, arXiv:2510.18913).

    Args:
        rewards: Log-ratios / temperature.
        target: Probabilities, 0 outside the mask: see ``coefficients.anchored_target``.
        mask: Where there is a response.
    """
    logps = _keep(rewards, mask, -math.inf).log_softmax(1)
    comparable = mask.sum(1) > 1
    return torch.where(comparable, -(target.detach() * _keep(logps, mask, 0.0)).sum(1), 0.0)


def plackett_luce_loss(rewards: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Compute -log P(the scores' order) under Plackett and Luce: each place is a softmax over what is left (DPO, arXiv:2305.18290, A.3).

    Args:
        rewards: Implicit rewards.
        scores: Higher is better; ties keep the order of the list.
        mask: Where there is a response.
    """
    order = rank_by(scores, mask).argsort(dim=1)
    ordered, present = _keep(rewards, mask, -math.inf).gather(1, order), mask.gather(1, order)
    remaining = ordered.flip(1).logcumsumexp(1).flip(1)
    # An absent place is -inf on both sides: it must not meet a subtraction.
    return (_keep(remaining, present, 0.0) - _keep(ordered, present, 0.0)).sum(1)


def in_context_ranking_loss(rewards: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    """Compute IRPO's loss: each item against the mean of the others, weighed by NDCG's gain and discount (arXiv:2504.15477).

    (1/N) sum_i (2^y_i - 1) / log2(1 + k_i) * log(1 + mean_{j != i} exp(r_j - r_i)), k = rank by relevance. For two items with
    relevance (1, 0), N times it is DPO.

    Args:
        rewards: beta * log-ratios.
        relevance: y, 0 = irrelevant. Gains grow as 2^y.
        mask: Where there is a response.
    """
    number = mask.sum(1)
    others = _pairs(mask) & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    safe = _keep(rewards, mask, 0.0)
    advantage = _log_mean_exp(safe[:, None, :] - safe[:, :, None], others)
    weights = discount_weights(_keep(relevance.detach(), mask, 0.0), rank_by(relevance, mask))
    losses = (weights * F.softplus(advantage)).masked_fill(~mask, 0.0).sum(1) / number.clamp(min=1)
    return torch.where(number > 1, losses, 0.0)


def lambda_loss(rewards: Tensor, values: Tensor, mask: Tensor, *, weighted: bool = True, ranked_by: RankedBy = "reward") -> Tensor:
    """Compute the logistic loss of every two responses with different values, weighed by what their swap changes in DCG.

    sum_{v_i > v_j} lambda_ij * softplus(r_j - r_i), lambda from ``swap_weights``, without gradient. The list loss of TPO
    (arXiv:2410.12854) and RankDPO (arXiv:2410.18013).

    Args:
        rewards: beta * log-ratios.
        values: v in [0, 1]; equal values are not compared.
        mask: Where there is a response.
        weighted: False gives every two responses weight 1.
        ranked_by: What the ranks are of: the current rewards, or the values.
    """
    safe, values = _keep(rewards, mask, 0.0), _keep(values.detach(), mask, 0.0)
    better = (values[:, :, None] > values[:, None, :]) & _pairs(mask)
    losses = F.softplus(safe[:, None, :] - safe[:, :, None])
    if weighted:
        losses = losses * swap_weights(values, rank_by(safe if ranked_by == "reward" else values, mask))
    return losses.masked_fill(~better, 0.0).sum((1, 2))


def discriminative_loss(values: Tensor, scores: Tensor, mask: Tensor, *, temperature: float | None = None) -> Tensor:
    """Compute what wrong responses have over right ones (DisCO, arXiv:2505.12366).

    mean over right o of temperature log mean over wrong o' of exp((s(o') - s(o)) / temperature): the likeliest wrong responses count most.
    Where the paper sums over wrong responses, this differs by a constant.

    Args:
        values: s of each response.
        scores: 1 = right, 0 = wrong. A prompt without both kinds gives 0.
        mask: Where there is a response.
        temperature: The paper's tau; None is its limit at infinity, DisCO-b: mean of the wrong - mean of the right.
    """
    safe, right = _keep(values, mask, 0.0), mask & (scores > 0.5)
    wrong = mask & ~right
    reached = _mean(safe, wrong) if temperature is None else temperature * _log_mean_exp(safe / temperature, wrong)
    return torch.where(right.any(1) & wrong.any(1), reached - _mean(safe, right), 0.0)


def surrogate_loss(values: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Compute minus the mean of what each response promises by the policy's change, its advantage included (``policy_gradient.py``)."""
    return torch.where(mask.sum(1) > 1, -_mean(_keep(values, mask, 0.0), mask), 0.0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) means of the masked values, 0 where the mask has nothing."""
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def _keep(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    return torch.where(mask, values, fill)


def _pairs(mask: Tensor) -> Tensor:
    """(B, N, N) True where both are responses."""
    return mask[:, :, None] & mask[:, None, :]


def _log_mean_exp(values: Tensor, mask: Tensor) -> Tensor:
    """Log of the mean of exp over the last axis, 0 where the mask has nothing."""
    some = mask.any(-1)
    # A row of nothing but -inf has a gradient of NaN, so it is computed on zeros.
    filled = _keep(values, mask | ~some[..., None], -math.inf)
    return torch.where(some, filled.logsumexp(-1) - mask.sum(-1).clamp(min=1).to(values.dtype).log(), 0.0)

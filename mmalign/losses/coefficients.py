"""What data says about a pair, turned into its beta, weight or label.

Shape legend: B = preference pairs or prompts, N = responses per prompt, D = hidden width. None of these carries a gradient.
"""

import math
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import UserError
from mmalign.losses.scores import at_least_float32
from mmalign.options.methods import DifficultyMode

BETA_MODES: tuple[DifficultyMode, ...] = ("paper", "paper-norm", "both")
"""Those that change beta."""


class PairCoefficients(NamedTuple):
    """What difficulty makes of each pair: its beta and its weight in the loss."""

    beta: Tensor
    weight: Tensor


def difficulty_coefficients(difficulty: Tensor, *, beta: float, mode: DifficultyMode) -> PairCoefficients:
    """Turn difficulty into a beta and a loss weight for each pair (DA-DPO, arXiv:2601.00623).

    With easiness e = 1 - difficulty and means over the data set:

    - ``off``: beta, weight 1: plain DPO.
    - ``paper``: beta (1 + e): what the released code computes; the mean beta rises.
    - ``paper-norm``: beta (1 + e) / mean(1 + e): the mean beta is kept. Ours.
    - ``loss-weight``: beta, weight (1 - e) / mean(1 - e): hard pairs count more. Ours.
    - ``both``: the beta of ``paper`` and the weight of ``loss-weight``. Ours.

    Where every pair has the same difficulty, ``paper-norm`` and ``loss-weight`` are plain DPO at beta, ``paper`` and ``both`` at
    beta (1 + e).

    Args:
        difficulty: (B,) in [0, 1], 1 = hard, of the whole data set: normalising by a batch's mean would make a pair's beta
            depend on its neighbours.
        beta: DPO's beta.
        mode: One of the five above.

    Returns:
        (B,) float32 each, without gradient. Computed in float64, so that equal difficulties give exactly 1.

    Raises:
        ValueError: If a difficulty is outside [0, 1] or NaN, or the mode is unknown.
    """
    difficulty = difficulty.detach().double()
    outside = ~((difficulty >= 0) & (difficulty <= 1))
    if outside.any():
        row = int(outside.nonzero()[0])
        raise UserError(f"difficulty of row {row} is {difficulty[row].item()}; expected a number in [0, 1]: score the pairs again")
    betas, weights = torch.full_like(difficulty, beta), torch.ones_like(difficulty)
    easiness = 1 - difficulty
    if mode not in get_args(DifficultyMode):
        raise UserError(f"difficulty mode is {mode!r}; expected one of {', '.join(get_args(DifficultyMode))}")
    if mode in ("paper", "both"):
        betas = beta * (1 + easiness)
    elif mode == "paper-norm":
        betas = beta * (1 + easiness) / (1 + easiness).mean()
    if mode in ("loss-weight", "both"):
        # All pairs as easy as can be: 0 / 0, and no pair counts more than another.
        weights = difficulty / difficulty.mean() if difficulty.any() else weights
    return PairCoefficients(betas.float(), weights.float())


def margin_weight(gap: Tensor, *, strongest: float, weakest: float, steepness: float, turning_gap: float) -> Tensor:
    """Turn a reward model's gap into the weight of a pair's loss (MADPO, arXiv:2510.05342).

    With c(|m|) falling from ``strongest`` to ``weakest`` and c(turning_gap) = 1, the weight is sigmoid(c m) / sigmoid(m) where
    m > -turning_gap, else 1. Over many pairs with Bradley-Terry labels the policy's optimal margin is then c m: hard pairs are pushed
    apart more than the reward model says, easy ones less.

    Args:
        gap: (B,) score of chosen - score of rejected, in a reward model's logits.
        strongest: c_max, above 1.
        weakest: c_min, in (0, 1).
        steepness: The paper's lambda, positive.
        turning_gap: The paper's tau, positive, in the unit of the gap.

    Returns:
        (B,) weights.

    Raises:
        ValueError: If a parameter is outside its range.
    """
    if not (strongest > 1 > weakest > 0):
        raise UserError(f"strongest is {strongest} and weakest {weakest}; expected strongest > 1 > weakest > 0")
    if not (steepness > 0 and turning_gap > 0):
        raise UserError(f"steepness is {steepness} and turning_gap {turning_gap}; expected two positive numbers")
    gap = gap.detach()
    odds = (strongest - 1) / (1 - weakest) * torch.exp(steepness * (gap.abs() - turning_gap))
    strength = weakest + (strongest - weakest) / (1 + odds)
    weight = torch.exp(F.logsigmoid(strength * gap) - F.logsigmoid(gap))
    return torch.where(gap > -turning_gap, weight, torch.ones_like(weight))


def preference_probability(gap: Tensor, *, temperature: float) -> Tensor:
    """Turn a score gap into P(chosen is better) by Bradley and Terry: sigmoid(gap / temperature).

    Raises:
        ValueError: If the temperature is not positive.
    """
    if not temperature > 0:
        raise UserError(f"score_temperature is {temperature}; expected a positive number, the gap at which 73% agree")
    return torch.sigmoid(gap.detach() / temperature)


def visit_flip(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Turn visits of a tree search into the share of the loss that goes to the swapped pair (arXiv:2405.00451).

    Args:
        chosen: (B,) visits of the chosen step.
        rejected: (B,) of the rejected one.

    Returns:
        (B,) rejected / (chosen + rejected), at most 1/2. Half where neither was visited: the search knows nothing.
    """
    chosen, rejected = at_least_float32(chosen.detach()), at_least_float32(rejected.detach())
    total = chosen + rejected
    return torch.where(total > 0, rejected / total.clamp(min=1), 0.5).clamp(max=0.5)


def rank_by(values: Tensor, mask: Tensor) -> Tensor:
    """Rank responses, 1 = the highest value; ties go by position.

    Args:
        values: (B, N).
        mask: (B, N) True where there is a response.

    Returns:
        (B, N) ranks; absent responses rank behind all others.
    """
    order = values.detach().masked_fill(~mask, -math.inf).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) + 1


def discount_weights(relevance: Tensor, rank: Tensor) -> Tensor:
    """Weigh each item by gain and discount of NDCG: (2^y - 1) / log2(1 + k) (IRPO, arXiv:2504.15477).

    Args:
        relevance: (B, N) y, 0 = irrelevant.
        rank: (B, N) k from 1.
    """
    return (torch.exp2(relevance) - 1) / torch.log2(1 + rank.to(relevance.dtype))


def swap_weights(value: Tensor, rank: Tensor) -> Tensor:
    """Weigh each two items by what their swap would change in DCG (LambdaLoss): |2^v_i - 2^v_j| |1/ln(1 + k_i) - 1/ln(1 + k_j)|.

    Args:
        value: (B, N) v.
        rank: (B, N) k from 1, by the current rewards.

    Returns:
        (B, N, N) symmetric, 0 on the diagonal.
    """
    gain, discount = torch.exp2(value), 1 / torch.log1p(rank.to(value.dtype))
    return (gain[:, :, None] - gain[:, None, :]).abs() * (discount[:, :, None] - discount[:, None, :]).abs()


def anchored_target(scores: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """Turn scores of a list into ADPO's target distribution: softmax of their z-scores / temperature (arXiv:2510.18913).

    Args:
        scores: (B, N).
        mask: (B, N) True where there is a response; two or more a row.
        temperature: The paper's beta_r.

    Returns:
        (B, N) probabilities, 0 where there is none. Equal scores give equal probabilities.

    Raises:
        ValueError: If the temperature is not positive.
    """
    if not temperature > 0:
        raise UserError(f"score_temperature is {temperature}; expected a positive number, such as 0.5")
    logits = (standardize(scores, mask, epsilon=1e-8) / temperature).masked_fill(~mask, -math.inf)
    return logits.softmax(1).masked_fill(~mask, 0)


def standardize(scores: Tensor, mask: Tensor, *, epsilon: float | None) -> Tensor:
    """Compare each score with its list: (score - mean) / (deviation + epsilon), the deviation that of a sample (n - 1).

    Args:
        scores: (B, N).
        mask: (B, N) True where there is a response.
        epsilon: Keeps equal scores from dividing by 0; None: don't divide at all.

    Returns:
        (B, N), 0 outside the mask and for a response alone.
    """
    scores = scores.detach().masked_fill(~mask, 0)
    count = mask.sum(1, keepdim=True)
    centred = (scores - scores.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~mask, 0)
    if epsilon is None:
        return centred
    deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + epsilon)


def step_similarity(step: Tensor, best: Tensor) -> Tensor:
    """Weigh a step by its likeness to the same step of the best response: 1 + cosine (TPO, arXiv:2410.12854).

    Args:
        step: (..., D) mean last-layer hidden state of the step.
        best: (..., D) the same of the best response.

    Returns:
        (...) weights in [0, 2].
    """
    return 1 + F.cosine_similarity(step.detach(), best.detach(), dim=-1)

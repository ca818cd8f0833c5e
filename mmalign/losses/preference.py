"""Direct preference optimisation on response log-probabilities, and its difficulty-aware form.

Shape legend: B = preference pairs. Every tensor here is (B,).
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

DifficultyMode = Literal["off", "paper", "paper-norm", "loss-weight"]


class PairLogps(NamedTuple):
    """Summed log p(response | images, prompt) under one model."""

    chosen: Tensor
    rejected: Tensor


class PairCoefficients(NamedTuple):
    """What difficulty makes of each pair: its beta and its weight in the loss."""

    beta: Tensor
    weight: Tensor


def compute_margin(policy: PairLogps, reference: PairLogps) -> Tensor:
    """Compute the implicit-reward difference without beta: log-ratio of chosen minus log-ratio of rejected.

    Returns:
        (B,) float32, in nats.
    """
    chosen = policy.chosen.float() - reference.chosen.float()
    rejected = policy.rejected.float() - reference.rejected.float()
    return chosen - rejected


def dpo_loss(policy: PairLogps, reference: PairLogps, *, beta: float | Tensor) -> Tensor:
    """Compute the DPO loss of each pair (arXiv:2305.18290, Eq. 7).

    Args:
        policy: Log-probabilities under the model being trained.
        reference: The same under the frozen reference (the teacher, in LLaVA-MoD).
        beta: Strength of the pull towards the reference. A (B,) tensor sets it pair by pair, which is all that DA-DPO
            changes here.

    Returns:
        (B,) losses, unreduced.

    Raises:
        ValueError: If ``beta`` is a tensor that is not (B,).
    """
    margin = compute_margin(policy, reference)
    if isinstance(beta, Tensor) and beta.shape != margin.shape:
        raise ValueError(f"beta has shape {tuple(beta.shape)}; expected one value a pair, {tuple(margin.shape)}")
    return -F.logsigmoid(beta * margin)


def difficulty_coefficients(difficulty: Tensor, *, beta: float, mode: DifficultyMode) -> PairCoefficients:
    """Turn difficulty into a beta and a loss weight for each pair (DA-DPO, arXiv:2601.00623).

    With easiness e = 1 - difficulty and means over the data set:

    - ``off``: beta, weight 1: plain DPO.
    - ``paper``: beta (1 + e): what the released code computes; the mean beta rises.
    - ``paper-norm``: beta (1 + e) / mean(1 + e): the mean beta is kept. Ours.
    - ``loss-weight``: beta, weight (1 - e) / mean(1 - e): hard pairs count more. Ours.

    Where every pair has the same difficulty, the last two are plain DPO at beta and ``paper`` is plain DPO at beta (1 + e).

    Args:
        difficulty: (B,) in [0, 1], 1 = hard, of the whole data set: normalising by a batch's mean would make a pair's beta
            depend on its neighbours.
        beta: DPO's beta.
        mode: One of the four above.

    Returns:
        (B,) float32 each, without gradient. Computed in float64, so that equal difficulties give exactly 1.

    Raises:
        ValueError: If a difficulty is outside [0, 1] or NaN, or the mode is unknown.
    """
    difficulty = difficulty.detach().double()
    outside = ~((difficulty >= 0) & (difficulty <= 1))
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"difficulty of row {row} is {difficulty[row].item()}; expected a number in [0, 1]: score the pairs again")
    betas, weights = torch.full_like(difficulty, beta), torch.ones_like(difficulty)
    easiness = 1 - difficulty
    if mode == "paper":
        betas = beta * (1 + easiness)
    elif mode == "paper-norm":
        betas = beta * (1 + easiness) / (1 + easiness).mean()
    elif mode == "loss-weight":
        # All pairs as easy as can be: 0 / 0, and no pair counts more than another.
        weights = difficulty / difficulty.mean() if difficulty.any() else weights
    elif mode != "off":
        raise ValueError(f"difficulty mode is {mode!r}; expected one of {', '.join(get_args(DifficultyMode))}")
    return PairCoefficients(betas.float(), weights.float())

"""Score or log-ratio to implicit reward: the second stage of every preference objective.

With a reference a link takes h = score under the policy - score under the reference; without one it takes the policy's score.

Shape legend: links work elementwise, on any shape.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import UserError

Link = Callable[[Tensor], Tensor]
FDivergence = Literal["reverse-kl", "forward-kl", "js", "alpha"]

# exp(20) is 5e8: what is beyond has no use for a gradient, and a sequence's log-ratio of -50 would overflow float16 and swamp the batch.
MAX_LOG_RATIO = 20.0
# p = 1 has infinite odds. A mean log-probability above this is a response that the model is sure of.
MAX_LOG_PROBABILITY = -1e-6


def identity(log_ratio: Tensor) -> Tensor:
    """DPO's link: the reverse KL divergence."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """-exp(-h) (f-DPO, arXiv:2309.16240), h clamped to +-20. A constant that cancels in every pair is left out."""
    return -torch.exp(-log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def jensen_shannon(log_ratio: Tensor) -> Tensor:
    """log(2 e^h / (1 + e^h)) = log 2 + log sigmoid(h) (f-DPO, arXiv:2309.16240)."""
    return math.log(2) + F.logsigmoid(log_ratio)


def alpha_divergence(coefficient: float) -> Link:
    """(1 - exp(-a h)) / a (f-DPO, arXiv:2309.16240), a h clamped to +-20.

    Args:
        coefficient: The paper's a: towards 0 it is DPO, at 1 forward KL. TRL's ``f_alpha_divergence_coef`` is 1 - a.

    Raises:
        ValueError: If it is outside (0, 1].
    """
    if not 0 < coefficient <= 1:
        raise UserError(f"divergence_coefficient is {coefficient}; expected a number in (0, 1]: near 0 is reverse KL, 1 forward KL")
    return lambda log_ratio: -torch.expm1(-(coefficient * log_ratio).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)) / coefficient


def build_divergence_link(divergence: FDivergence, *, coefficient: float) -> Link:
    """Return f-DPO's link. ``coefficient`` is for ``alpha`` only."""
    links: dict[FDivergence, Link] = {"reverse-kl": identity, "forward-kl": forward_kl, "js": jensen_shannon}
    return alpha_divergence(coefficient) if divergence == "alpha" else links[divergence]


def clipped_log_ratio(clip_range: float) -> Link:
    """Log of the ratio clipped to [1 - c, 1 + c] (D3PO, arXiv:2311.13231); no gradient outside.

    Raises:
        ValueError: If the range is outside (0, 1).
    """
    if not 0 < clip_range < 1:
        raise UserError(f"clip_range is {clip_range}; expected a number between 0 and 1, such as 0.1")
    low, high = math.log1p(-clip_range), math.log1p(clip_range)
    return lambda log_ratio: log_ratio.clamp(low, high)


def log_odds(mean_logp: Tensor) -> Tensor:
    """Log p - log(1 - p) of the mean token log-probability (ORPO, arXiv:2403.07691; ASFT, arXiv:2409.10571).

    Of means only: a whole response's p is so small that 1 - p rounds to 1.
    """
    logp = mean_logp.clamp(max=MAX_LOG_PROBABILITY)
    return logp - torch.log(-torch.expm1(logp))

"""The loss of a reward model: Bradley-Terry on every two responses of a prompt whose scores differ.

Shape legend: B = prompts, R = responses in the batch, N = most responses of a prompt.
"""

from torch import Tensor
from torch.nn import functional as F

from mmalign.losses.list_kernel import pad_lists


def bradley_terry_loss(rewards: Tensor, scores: Tensor, counts: Tensor, *, margin: float = 0.0, centering: float = 0.0) -> Tensor:
    """Compute -log sigmoid(r_w - r_l - margin) + centering (r_w + r_l)^2 of each prompt, a mean over its pairs.

    The first part is that of MADPO's reward model (arXiv:2510.05342); the second, after TRL's RewardTrainer, keeps rewards around 0, which
    pairs alone say nothing about. A pair is a list of two.

    Args:
        rewards: (R,) in the order of the prompts.
        scores: (R,) the data's; of two responses the one with the higher score is w.
        counts: (B,) responses of each prompt.
        margin: By how much r_w should be above r_l.
        centering: Weight of the second part.

    Returns:
        (B,) losses, unreduced; 0 where all scores of a prompt are equal.
    """
    own, mask = pad_lists(rewards, counts)
    values, _ = pad_lists(scores.to(rewards), counts)
    better = (values[:, :, None] > values[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    first, second = own[:, :, None], own[:, None, :]
    pairs = -F.logsigmoid(first - second - margin) + centering * (first + second).square()
    return pairs.masked_fill(~better, 0.0).sum((1, 2)) / better.sum((1, 2)).clamp_min(1)

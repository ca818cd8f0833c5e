"""What the image adds to a teacher's belief in each token, and the weights that tokens and answers get from it.

After VA-OPD (arXiv:2605.21924): the advantage is the paper's; the sizes of the groups and the weight of an answer are ours.

Shape legend: K = scored tokens of a batch, R = answers of it.
"""

import torch
from torch import Tensor


def group_weights(advantage: Tensor, answer: Tensor, *, num_answers: int, share: float) -> tuple[Tensor, Tensor]:
    """Weigh tokens so that a mean over an answer is half the mean over its top tokens and half that over the others.

    Args:
        advantage: (K,) log p(token | image) - log p(token | weakened image) under the teacher.
        answer: (K,) number of each token's answer.
        num_answers: R.
        share: Of an answer's tokens, those with the largest advantage; one at least, and all but one at most.

    Returns:
        (K,) weights, 1 on average over each answer, and (K,) bool: the top tokens. An answer of one token has no other group: its weight
        is 1.
    """
    counts = torch.bincount(answer, minlength=num_answers)
    order = torch.argsort(advantage, descending=True, stable=True)
    order = order[torch.argsort(answer[order], stable=True)]
    rank = torch.empty_like(answer)
    rank[order] = torch.arange(len(answer), device=answer.device) - (counts.cumsum(0) - counts)[answer[order]]
    whole, top = counts[answer], (share * counts).round().long().clamp(min=1).minimum((counts - 1).clamp(min=1))[answer]
    is_top = rank < top
    size = torch.where(is_top, top, whole - top)
    return torch.where(whole > 1, whole / (2 * size), 1.0), is_top


def answer_weights(advantage: Tensor, answer: Tensor, *, num_answers: int) -> Tensor:
    """Weigh answers by their mean advantage a: 2 sigmoid(a), which is 1 where the image adds nothing, and between 0 and 2.

    Args:
        advantage: As in ``group_weights``.
        answer: The same.
        num_answers: R.

    Returns:
        (K,) the weight of each token's answer.
    """
    sums = torch.zeros(num_answers, device=advantage.device).index_add_(0, answer, advantage)
    means = sums / torch.bincount(answer, minlength=num_answers).clamp(min=1)
    return 2 * means.sigmoid()[answer]

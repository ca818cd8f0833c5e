"""How images of no known class are told from the others by a score, such as the largest probability (arXiv:1610.02136).

Shape legend: N = images of known classes, B = foreign images.
"""

import torch
from torch import Tensor

# Of the known images, kept by the threshold.
_KEPT_PERCENT = 95


def score_detection(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Compute AUROC and the false positives at 95% true ones; an image is taken for a known one by a large score.

    Args:
        inside: (N,) scores of images of known classes.
        outside: (B,) scores of foreign images.

    Returns:
        ``auroc``: how likely a known image scores above a foreign one, ties half. ``fpr_at_95``: share of foreign images at or above the
        largest threshold that keeps 95% of the known ones.
    """
    ordered = outside.double().sort().values
    inside = inside.double().contiguous()
    below, not_above = (torch.searchsorted(ordered, inside, right=right).double() for right in (False, True))
    threshold = inside.sort(descending=True).values[_rank(len(inside)) - 1]
    return {
        "auroc": ((below + not_above) / 2).mean().item() / len(ordered),
        "fpr_at_95": (ordered >= threshold).double().mean().item(),
    }


def _rank(number: int) -> int:
    """How many of the known images must be kept: 95%, rounded up in whole numbers."""
    return -(-number * _KEPT_PERCENT // 100)

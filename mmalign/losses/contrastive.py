"""Contrastive image-text loss.

Shape legend: B = image-text pairs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def clip_loss(logits_per_image: Tensor, text_keys: Tensor) -> Tensor:
    """Compute the symmetric contrastive loss of each pair (arXiv:2103.00020, Fig. 3).

    Captions that say the same are all right answers: the target is uniform over them, since a small world repeats itself.

    Args:
        logits_per_image: (B, B) scaled cosines, image by text.
        text_keys: (B,) equal where two captions are the same text.

    Returns:
        (B,) losses: the mean of image-to-text and text-to-image cross-entropy.
    """
    same = (text_keys[:, None] == text_keys[None, :]).float()
    target = same / same.sum(-1, keepdim=True)
    logits = logits_per_image.float()
    image_to_text = -(target * F.log_softmax(logits, -1)).sum(-1)
    text_to_image = -(target * F.log_softmax(logits.t(), -1)).sum(-1)
    return torch.stack([image_to_text, text_to_image]).mean(0)

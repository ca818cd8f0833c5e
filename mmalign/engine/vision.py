"""Image features: computed once, and given to every row that shows the image."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def repeat_image_features(model: PreTrainedModel, images: dict[str, Tensor], repeats: Tensor) -> dict[str, Any]:
    """Encode each image once and repeat its features for the plain rows of its prompt.

    Args:
        model: The multimodal LLM.
        images: Image inputs, one image a prompt.
        repeats: (prompts,) how many rows each prompt has.

    Returns:
        Keyword arguments for the model's forward in place of ``images``.

    Raises:
        ValueError: If prompts have several images, whose features can't be told apart here.
    """
    if not images:
        return {}
    features = model.get_image_features(**images, return_dict=True)
    pooled = features.pooler_output
    if len(pooled) != len(repeats):
        raise ValueError(f"{len(pooled)} images for {len(repeats)} prompts: plain rows need one image a prompt; use shared rows")
    if isinstance(pooled, Tensor):
        features.pooler_output = pooled.repeat_interleave(repeats.to(pooled.device), dim=0)
    else:
        items = [item for item, count in zip(pooled, repeats.tolist(), strict=True) for _ in range(count)]
        features.pooler_output = type(pooled)(items)
    companions = {key: torch.repeat_interleave(value, repeats, dim=0) for key, value in images.items() if key != "pixel_values"}
    return {**companions, "mm_encoder_outputs": {"image": features}}

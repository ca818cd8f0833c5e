"""The contrastive gap: how much better the chosen answer fits the image than the rejected one, by a CLIP model.

Shape legend: S = text pieces of a batch, D = embedding width.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.data.rows import PairRow

TEXT_POLICY = "mean over sentences; longer ones in pieces of whole words"
# Trained on texts padded to the limit, without a mask: what stands at the last place is the text's embedding.
_PADDED = ("siglip", "siglip2")


def text_limit(config: Any) -> int:
    """Return the most tokens that a contrastive model's text tower holds: 77 for CLIP, 248 for Long-CLIP, 64 for SigLIP.

    The tokenizer's own limit is not asked: Long-CLIP checkpoints come with CLIP's.

    Args:
        config: Of the model.

    Raises:
        ValueError: If the config doesn't say.
    """
    limit = getattr(getattr(config, "text_config", None), "max_position_embeddings", None)
    if limit is None:
        raise ValueError(f"the config of {config.model_type} has no text_config.max_position_embeddings; name a CLIP or SigLIP model")
    return limit


def split_text(text: str, tokenizer: Any, max_tokens: int) -> list[str]:
    """Split a response into sentences, and a sentence that the text tower can't hold into pieces of whole words.

    Args:
        text: The response.
        tokenizer: The text tower's.
        max_tokens: Its longest input, special tokens included.
    """
    pieces: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        piece = ""
        for word in sentence.split():
            longer = f"{piece} {word}".strip()
            if piece and len(tokenizer(longer)["input_ids"]) > max_tokens:
                pieces.append(piece)
                longer = word
            piece = longer
        pieces.append(piece)
    return pieces


@torch.no_grad()
def score_contrastive(model: Any, processor: Any, rows: Sequence[PairRow]) -> list[float]:
    """Compute the contrastive gap of each pair: mean cosine of image and sentence, chosen minus rejected.

    Each image is encoded once. Pairs without an image, or with several, use the mean over their images; none gives 0.

    Returns:
        A gap for each row, in cosine units.
    """
    limit = text_limit(model.config)
    images = [image for row in rows for image in row.images]
    if not images:
        return [0.0] * len(rows)
    pixels = processor.image_processor(images=images, return_tensors="pt").to(model.device, model.dtype)
    image_features = _unit(model.get_image_features(**pixels))
    pieces = [split_text(text, processor.tokenizer, limit) for row in rows for text in (row.chosen, row.rejected)]
    flat = [piece for response in pieces for piece in response]
    text_features = _unit(model.get_text_features(**_encode_texts(model, processor, flat))).split([len(part) for part in pieces])
    gaps, start = [], 0
    for i, row in enumerate(rows):
        own = image_features[start : start + len(row.images)]
        start += len(row.images)
        chosen, rejected = ((own @ text_features[2 * i + k].t()).mean().item() if len(own) else 0.0 for k in (0, 1))
        gaps.append(chosen - rejected)
    return gaps


def _encode_texts(model: Any, processor: Any, texts: list[str]) -> dict[str, Tensor]:
    limit, padded = text_limit(model.config), model.config.model_type in _PADDED
    padding = "max_length" if padded else "longest"
    encoded = processor.tokenizer(texts, return_tensors="pt", padding=padding, truncation=True, max_length=limit).to(model.device)
    return {key: encoded[key] for key in (("input_ids",) if padded else ("input_ids", "attention_mask"))}


def _unit(output: Any) -> Tensor:
    features = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features.float(), dim=-1)

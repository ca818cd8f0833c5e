"""Texts as the text tower of a contrastive model reads them, and what its towers give.

Shape legend: S = texts, L = tokens, D = embedding width.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmalign.errors import UserError

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
        raise UserError(f"the config of {config.model_type} has no text_config.max_position_embeddings; name a CLIP or SigLIP model")
    return limit


def encode_texts(model: Any, processor: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Encode texts as ``get_text_features`` takes them, each tensor (S, L) on the model's device; longer texts are cut at the limit."""
    limit, padded = text_limit(model.config), model.config.model_type in _PADDED
    padding = "max_length" if padded else "longest"
    encoded = processor.tokenizer(list(texts), return_tensors="pt", padding=padding, truncation=True, max_length=limit).to(model.device)
    return {key: encoded[key] for key in (("input_ids",) if padded else ("input_ids", "attention_mask"))}


def pooled(output: Any) -> Tensor:
    """The features (S, D) that a CLIP or SigLIP tower gives."""
    return output if isinstance(output, Tensor) else output.pooler_output

"""CLIP models from checkpoints, or from a config and a tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from mmalign.errors import UserError
from mmalign.models.load import load_clip, read_config_values
from mmalign.options.methods import Tower


def build_or_load_clip(source: str, *, tokenizer: str | None, seed: int) -> tuple[Any, Any]:
    """Load a contrastive model, or build a random CLIP from a JSON config.

    Args:
        source: Folder, hub id, or a JSON file of a CLIPConfig.
        tokenizer: Tokenizer of a model that is built.
        seed: Of the random weights.

    Returns:
        Model in float32 and processor.

    Raises:
        ValueError: If a config comes without a tokenizer, or a tokenizer without a config.
    """
    if not source.endswith(".json"):
        if tokenizer is not None:
            raise UserError(f"--tokenizer is for a model built from a JSON config; {source} has its own")
        return load_clip(source, dtype="float32")
    if tokenizer is None:
        raise UserError(f"{source} is a config without a tokenizer; name one with --tokenizer")
    if not Path(source).is_file():
        raise UserError(f"config file not found: {source}")
    return build_clip(read_config_values(Path(source)), tokenizer=tokenizer, seed=seed)


def freeze_towers(model: Any, towers: Sequence[Tower]) -> None:
    """Stop gradients to towers; the projections to the shared space and the temperature train.

    Raises:
        UserError: If the model keeps no such tower apart.
    """
    for tower in towers:
        part = getattr(model, {"vision_tower": "vision_model", "text_tower": "text_model"}[tower], None)
        if part is None:
            raise UserError(f"{type(model).__name__} has no {tower} of its own; leave --freeze {tower} out")
        part.requires_grad_(False)


def build_clip(values: dict[str, Any], *, tokenizer: str, seed: int) -> tuple[CLIPModel, CLIPProcessor]:
    """Build a random CLIPModel and its processor.

    The text tower pools at the end-of-sequence token, so the tokenizer is made to put its begin and end tokens around each text.
    """
    text_tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    bos, eos = text_tokenizer.bos_token, text_tokenizer.eos_token
    text_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, text_tokenizer.bos_token_id), (eos, text_tokenizer.eos_token_id)]
    )
    text_config = {
        **values.get("text_config", {}),
        "vocab_size": len(text_tokenizer),
        "bos_token_id": text_tokenizer.bos_token_id,
        "eos_token_id": text_tokenizer.eos_token_id,
        "pad_token_id": text_tokenizer.pad_token_id,
    }
    if text_config["eos_token_id"] == 2:
        # CLIPTextModel takes id 2 for the original models' wrong config and pools at the highest id instead.
        raise UserError("the tokenizer's eos token has id 2, at which CLIP's text tower would pool elsewhere; give it another id")
    torch.manual_seed(seed)
    config = CLIPConfig(**{**values, "text_config": text_config})
    side = config.vision_config.image_size
    image_processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return CLIPModel(config), CLIPProcessor(image_processor, text_tokenizer)

"""Which weights train: LoRA on the language model, and parts of the model frozen."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

Part = Literal["vision_tower", "projector", "language_model"]


@dataclass(frozen=True)
class LoraOptions:
    """LoRA on every linear layer of the language model, except the output head."""

    rank: int
    alpha: int
    dropout: float = 0.0


def find_part(model: PreTrainedModel, part: Part) -> nn.Module:
    """Return a part of a multimodal LLM.

    Raises:
        ValueError: If the model has no such part under a name known here.
    """
    if part == "vision_tower":
        found = model.get_encoder(modality="image")
    elif part == "language_model":
        found = model.get_decoder()
    else:
        names = ("multi_modal_projector", "connector", "embed_vision", "aligner")
        found = next((getattr(model.base_model, name) for name in names if hasattr(model.base_model, name)), model)
    if found is model or found is model.base_model:
        raise ValueError(f"{type(model).__name__} has no {part} of its own; leave it out of --freeze")
    return found


def freeze_parts(model: PreTrainedModel, parts: Sequence[Part]) -> None:
    """Stop gradients to some parts.

    Raises:
        ValueError: If nothing is left to train, or the model has no such part.
    """
    for part in parts:
        find_part(model, part).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"nothing is left to train with {', '.join(parts)} frozen; leave one out of --freeze")


def add_lora(model: PreTrainedModel, options: LoraOptions) -> PeftModel:
    """Put a LoRA adapter on the language model. All else is frozen, so that the adapter-off model never moves."""
    decoder = find_part(model, "language_model")
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    leaves = {name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    # A pattern over full paths: bare leaf names such as q_proj would reach into the vision tower.
    target = rf"{re.escape(prefix)}\..*\.({'|'.join(sorted(leaves))})"
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=target)
    return get_peft_model(model, config)

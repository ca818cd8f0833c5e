"""Image features: computed once an image, and given to every row and every model that shows it.

Shape legend: P = prompts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from mmalign.errors import UserError
from mmalign.models.eval_mode import eval_mode

_PIXELS = "pixel_values"

PATCH_INDICES = "image_token_pooling"
"""Which of all patches of the pixels each image token is made of, -1 for none (Molmo-2)."""


@dataclass(frozen=True)
class ImageFeatures:
    """What a model's vision tower and projector made of a batch's images."""

    output: ModelOutput
    """As the model's ``get_image_features`` returns it."""
    companions: dict[str, Tensor]
    """The image inputs beside the pixels, which the language model's side reads (sizes, grids)."""
    blocks: Tensor
    """(kinds, P) how many entries of a sequence belong to each prompt, one row for each thing that sequences may count."""


def image_inputs(model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The batch's image inputs in the precision of the model's weights: not every tower casts its pixels itself."""
    return {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in batch["images"].items()}


def encode_images(model: PreTrainedModel, batch: dict[str, Any]) -> ImageFeatures | None:
    """Encode each image of a batch once; None for text alone.

    Args:
        model: The multimodal LLM, without wrappers.
        batch: From ``collate_prompts``.
    """
    images = image_inputs(model, batch)
    if not images:
        return None
    # Some families have it on the model without a head alone (Janus, Emu3).
    owner: Any = model if hasattr(model, "get_image_features") else model.base_model
    output = owner.get_image_features(**images, return_dict=True)
    # Read by the tower's side alone.
    companions = {key: value for key, value in images.items() if key not in (_PIXELS, PATCH_INDICES)}
    return ImageFeatures(output, companions, batch["layout"]["image_blocks"])


@torch.no_grad()
def encode_frozen_images(model: PreTrainedModel, batch: dict[str, Any]) -> ImageFeatures | None:
    """``encode_images`` in eval mode and without gradient: what the frozen tower gives to policy and reference alike."""
    with eval_mode(model):
        return encode_images(model, batch)


def vision_is_frozen(model: PreTrainedModel) -> bool:
    """Tell whether no weight outside the language model trains, so that features stay the same over the whole run.

    False for sharded weights too: their parts are gathered inside the wrapper's forward only.
    """
    language = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    inside = {id(parameter) for part in language if isinstance(part, nn.Module) for parameter in part.parameters()}
    trains_outside = any(parameter.requires_grad and id(parameter) not in inside for parameter in model.parameters())
    return not trains_outside and not any(isinstance(parameter, DTensor) for parameter in model.parameters())


def feature_inputs(features: ImageFeatures | None, repeats: Tensor | None = None) -> dict[str, Any]:
    """Turn features into keyword arguments of the model's forward, in place of ``pixel_values``.

    Args:
        features: From ``encode_images``; None for text alone.
        repeats: (P,) rows of each prompt, where one prompt has several; each gets its features again.

    Raises:
        ValueError: If a sequence of features can't be divided among the prompts.
    """
    if features is None:
        return {}
    output = type(features.output)(**features.output)
    companions = features.companions
    if repeats is not None:
        output = type(output)(**{key: _repeat(value, features.blocks, repeats, key) for key, value in output.items()})
        companions = {key: _repeat(value, features.blocks, repeats, key) for key, value in companions.items()}
    return {**companions, "mm_encoder_outputs": {"image": output}}


# What the tower returns beside the features that enter the language model; nothing reads them there.
_UNUSED = ("last_hidden_state", "hidden_states", "attentions")


def feature_tensors(features: ImageFeatures) -> list[Tensor]:
    """List the features that enter the language model."""
    return [tensor for key, value in features.output.items() if key not in _UNUSED for tensor in _flatten(value)]


def _flatten(value: Any) -> list[Tensor]:
    """Tensors in the lists that families keep them in, by image or by layer."""
    if value is None or isinstance(value, Tensor):
        return [] if value is None else [value]
    return [tensor for part in value for tensor in _flatten(part)]


_BY_LAYER = "deepstack_features"
# Embeddings of marks around images, the same for all of them (Ovis-2).
_OF_ALL = "visual_indicator_features"


def _repeat(value: Any, blocks: Tensor, repeats: Tensor, key: str) -> Any:
    """Repeat each prompt's entries of a sequence: tensors by their first dimension, lists by their items."""
    if value is None or key in _UNUSED:
        return None
    if key == _BY_LAYER:
        return [_repeat(layer, blocks, repeats, "") for layer in value]
    if key == _OF_ALL:
        return value
    fitting = next((block for block in blocks if int(block.sum()) == len(value)), None)
    if fitting is None:
        raise UserError(f"{len(value)} entries of image features can't be divided among {len(repeats)} prompts; use shared rows")
    order = []
    start = 0
    for size, count in zip(fitting.tolist(), repeats.tolist(), strict=True):
        order += [*range(start, start + size)] * count
        start += size
    if isinstance(value, Tensor):
        return value[torch.tensor(order, device=value.device)]
    return type(value)([value[i] for i in order])

"""Count a model's parameters: all, those that train, and those that one token passes through."""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from mmalign.errors import UserError


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of weights. Weights that two layers share (tied embeddings) count once."""

    total: int
    trainable: int
    activated: int


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count weights; ``activated`` takes top_k / num_experts of every expert layer and all of everything else.

    Embeddings count in full, so a dense model's activated weights are its total. Weights in 4 bits count as the matrix they stand for.

    Raises:
        ValueError: If a model routes to experts and its expert weights are not the library's fused kind.
    """
    shares = _expert_shares(model)
    # What an adapter trains a copy of stands by for the reference, and no token passes through both.
    copied = [part.original_module for part in model.modules() if isinstance(part, ModulesToSaveWrapper)]
    replaced = {id(parameter) for module in copied for parameter in module.parameters()}
    sizes = [(parameter, num_weights(parameter)) for parameter in model.parameters() if id(parameter) not in replaced]
    return ParameterCounts(
        total=sum(size for _, size in sizes),
        trainable=sum(size for parameter, size in sizes if parameter.requires_grad),
        activated=int(sum(size * shares.get(id(parameter), Fraction(1)) for parameter, size in sizes)),
    )


def describe_rounding(model: nn.Module) -> str | None:
    """Say of weights that train in half precision that small steps don't change them; None where there are none."""
    halves = [weight for weight in model.parameters() if weight.requires_grad and weight.dtype.itemsize < 4]
    if not halves:
        return None
    dtype = str(halves[0].dtype).removeprefix("torch.")
    least = round(4 / torch.finfo(halves[0].dtype).eps)
    return (
        f"{sum(weight.numel() for weight in halves):,} weights train in {dtype}: a step that changes one by less than 1/{least:,} of "
        "itself is rounded away; --dtype float32 --precision bfloat16 keeps it"
    )


def _expert_shares(model: nn.Module) -> dict[int, Fraction]:
    """Map the id of each expert parameter to the share of it that a token uses."""
    shares: dict[int, Fraction] = {}
    for part in model.modules():
        # A multimodal LLM's own config has no top_k: the text model inside it has.
        top_k = getattr(part.config, "num_experts_per_tok", None) if isinstance(part, PreTrainedModel) else None
        if not top_k:
            continue
        found = {
            id(parameter): Fraction(min(top_k, len(parameter)), len(parameter))
            for module in part.modules()
            if _is_fused_experts(module)
            for parameter in module.parameters(recurse=False)
        }
        if not found:
            raise UserError(
                f"{type(part).__name__} routes each token to {top_k} experts, and no layer of it holds fused expert weights "
                "(num_experts, rows, columns): its activated parameters can't be counted"
            )
        shares |= found
    return shares


def _is_fused_experts(module: nn.Module) -> bool:
    """Tell the layer that holds all experts' matrices, stacked, from the router, whose weight has two dimensions."""
    number = getattr(module, "num_experts", None)
    stacked = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 3]
    return bool(stacked) and all(parameter.shape[0] == number for parameter in stacked)


def num_weights(parameter: nn.Parameter) -> int:
    """Count a parameter's weights; bitsandbytes packs two a byte and keeps the true shape beside them."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)

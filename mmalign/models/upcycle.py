"""Upcycling: a dense multimodal LLM becomes a mixture of experts that computes the same (arXiv:2212.05055; LLaVA-MoD, arXiv:2408.15881).

Every expert begins as a copy of its layer's feed-forward network and the weights of the chosen ones sum to 1, so the router changes
nothing before the experts part. The result is a stock transformers model.

Shape legend: E = experts of a layer, D = hidden width, I = width of an expert.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from mmalign.errors import UserError
from mmalign.models.sparse_families import NEUTRAL_WIDTH, build_sparse_config, find_sparse_family
from mmalign.options.models import ExpertsOptions

_KERNEL_MULTIPLE = 8
"""Its rows are multiples of 16 bytes: eight numbers in half precision."""


def find_sparse_layers(words: Sequence[str], num_layers: int) -> tuple[int, ...]:
    """Return the layers that get experts, ascending.

    Args:
        words: ``alternate`` (0, 2, 4, ..., as LLaVA-MoD has it), ``all``, or layer numbers, with or without commas.
        num_layers: Of the language model.

    Raises:
        ValueError: If it is none of these, or a layer does not exist.
    """
    parts = [part for word in words for part in word.replace(",", " ").split()]
    if parts in (["alternate"], ["all"]):
        return tuple(range(0, num_layers, 2 if parts == ["alternate"] else 1))
    if not parts or not all(part.isdecimal() and int(part) < num_layers for part in parts):
        raise UserError(f"layers are {' '.join(words)!r}; expected alternate, all, or numbers from 0 to {num_layers - 1}, such as 0 2 4")
    return tuple(sorted(set(map(int, parts))))


@torch.no_grad()
def upcycle(dense: PreTrainedModel, options: ExpertsOptions) -> PreTrainedModel:
    """Build the sparse model of a dense one.

    Args:
        dense: A multimodal LLM in float32.
        options: Experts, layers, router.

    Returns:
        A stock model with experts, in float32 and eval mode. It is not compared here: see ``compute_largest_difference``.

    Raises:
        ValueError: If the language model has no sparse class that computes the same, or is sparse already.
    """
    text = dense.config.get_text_config()
    layers = find_sparse_layers(options.layers, text.num_hidden_layers)
    all_layers = len(layers) == text.num_hidden_layers
    family = find_sparse_family(text, all_layers=all_layers, shared_expert=options.shared_expert)
    if text.intermediate_size % options.granularity:
        raise UserError(
            f"granularity is {options.granularity}, and the feed-forward width {text.intermediate_size} is no multiple of it: "
            "choose a divisor"
        )
    expert = text.intermediate_size // options.granularity
    if expert % _KERNEL_MULTIPLE or text.hidden_size % _KERNEL_MULTIPLE:
        remedy = "choose a smaller --granularity" if options.granularity > 1 else "this model can't be upcycled"
        raise UserError(
            f"experts would be {expert} wide in a model of width {text.hidden_size}, and transformers' kernel for experts takes multiples "
            f"of {_KERNEL_MULTIPLE} alone; {remedy}"
        )
    joint = build_sparse_config(
        dense.config,
        family,
        sparse_layers=layers,
        num_experts=options.num_experts * options.granularity,
        num_experts_per_tok=options.top_k * options.granularity,
        moe_intermediate_size=expert,
        shared_expert_intermediate_size=text.intermediate_size if options.shared_expert else NEUTRAL_WIDTH,
    )
    sparse = AutoModelForImageTextToText.from_config(joint, dtype=torch.float32).eval()
    weights = _upcycle_weights(dense, layers, options, has_shared_expert=family.has_shared_expert)
    _fill(sparse, weights)
    sparse.generation_config = dense.generation_config
    return sparse


def _upcycle_weights(
    dense: PreTrainedModel, layers: Sequence[int], options: ExpertsOptions, *, has_shared_expert: bool
) -> dict[str, Tensor]:
    weights = dict(dense.state_dict())
    decoder = dense.get_decoder()
    prefix = next(name for name, module in dense.named_modules() if module is decoder)
    generator = torch.Generator().manual_seed(options.seed)
    for layer in layers:
        at = f"{prefix}.layers.{layer}.mlp"
        gate, up, down = (weights.pop(f"{at}.{name}_proj.weight") for name in ("gate", "up", "down"))
        router = _new_router(options, gate.shape[1], generator)
        weights |= {f"{at}.{name}": value for name, value in _experts(gate, up, down, router, options).items()}
        if has_shared_expert:
            weights |= {f"{at}.{name}": value for name, value in _shared_expert(gate, up, down, copied=options.shared_expert).items()}
    return weights


def _new_router(options: ExpertsOptions, width: int, generator: torch.Generator) -> Tensor:
    """One row a copy, (num_experts, D)."""
    if options.router_init == "normal":
        return torch.randn(options.num_experts, width, generator=generator) * options.router_std
    return (torch.rand(options.num_experts, width, generator=generator) * 2 - 1) / width**0.5


def _experts(gate: Tensor, up: Tensor, down: Tensor, router: Tensor, options: ExpertsOptions) -> dict[str, Tensor]:
    """Fused weights of a layer's experts: gate_up (E, 2 I, D), down (E, D, I), router (E, D). A copy's parts stand together, and their
    router rows begin equal, so that they are chosen together ("virtual groups", arXiv:2410.07524).

    The weights of the chosen experts sum to 1 over a copy's parts, whose outputs must be added up in full: hence the scale of ``down``.
    """
    parts = options.granularity
    gates, ups, downs = gate.chunk(parts, 0), up.chunk(parts, 0), down.chunk(parts, 1)
    scale = parts * (0.5 if options.shared_expert else 1.0)
    gate_up = torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
    return {
        "experts.gate_up_proj": gate_up.repeat(options.num_experts, 1, 1),
        "experts.down_proj": torch.stack(downs).mul(scale).repeat(options.num_experts, 1, 1),
        "gate.weight": router.repeat_interleave(parts, 0),
    }


def _shared_expert(gate: Tensor, up: Tensor, down: Tensor, *, copied: bool) -> dict[str, Tensor]:
    """A copy whose gate is sigmoid(0) = 1/2; or zeros throughout, which add nothing and get no gradient, ever."""
    narrow = 0 if copied else NEUTRAL_WIDTH
    return {
        "shared_expert.gate_proj.weight": gate if copied else gate.new_zeros(narrow, gate.shape[1]),
        "shared_expert.up_proj.weight": up if copied else up.new_zeros(narrow, up.shape[1]),
        "shared_expert.down_proj.weight": down if copied else down.new_zeros(down.shape[0], narrow),
        "shared_expert_gate.weight": gate.new_zeros(1, gate.shape[1]),
    }


def _fill(sparse: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    expected = sparse.state_dict()
    without_place, missing = sorted(weights.keys() - expected.keys()), sorted(expected.keys() - weights.keys())
    if without_place or missing:
        name = (without_place or missing)[0]
        raise UserError(
            f"{type(sparse).__name__} with a {sparse.config.get_text_config().model_type} can't compute what the dense model does: "
            f"{name} {'has no place in it' if without_place else 'is not in the dense model'}, and {len(without_place + missing) - 1} "
            "more weights differ"
        )
    sparse.load_state_dict(weights)
    sparse.tie_weights()

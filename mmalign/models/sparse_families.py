"""Which mixture-of-experts class of transformers computes what a dense language model does, and with which configuration."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    MixtralConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    Qwen3VLMoeConfig,
    Qwen3VLMoeTextConfig,
)

from mmalign.errors import UserError

NEUTRAL_WIDTH = 8
"""Width of a shared expert that adds nothing: the class has one in any case, and fused kernels want a multiple of 8."""


@dataclass(frozen=True)
class SparseFamily:
    """A mixture-of-experts class that dense weights fit into. What it can do is read from the fields of its configuration."""

    text_config: type[PreTrainedConfig]
    joint_config: type[PreTrainedConfig] | None = None
    """Of the whole model, where its class is another one too."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What the class calls ``num_experts`` and ``moe_intermediate_size``, where it has other words."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What else its configuration must say to compute what the dense class does."""

    @property
    def kind(self) -> str:
        """Its name in transformers."""
        return self.text_config.model_type

    @property
    def fields(self) -> set[str]:
        """Of its configuration."""
        return {field.name for field in dataclasses.fields(self.text_config)}

    @property
    def has_dense_layers(self) -> bool:
        """Whether layers may go without experts."""
        return "mlp_only_layers" in self.fields

    @property
    def has_shared_expert(self) -> bool:
        """Whether every sparse layer has an expert that all tokens pass through."""
        return "shared_expert_intermediate_size" in self.fields


_MIXTRAL = SparseFamily(MixtralConfig, names={"num_experts": "num_local_experts", "moe_intermediate_size": "intermediate_size"})
# Without biases, Qwen2-MoE's attention is Llama's.
_WITHOUT_BIASES = SparseFamily(Qwen2MoeConfig, values={"qkv_bias": False})
# Dense class -> the sparse classes that may compute the same; the first one that has what is asked for is taken.
FAMILIES: dict[str, Sequence[SparseFamily]] = {
    "qwen3": [SparseFamily(Qwen3MoeConfig)],
    "qwen2": [SparseFamily(Qwen2MoeConfig, values={"qkv_bias": True})],
    "llama": [_MIXTRAL, _WITHOUT_BIASES],
    "mistral": [_MIXTRAL, _WITHOUT_BIASES],
    "qwen3_vl_text": [SparseFamily(Qwen3VLMoeTextConfig, joint_config=Qwen3VLMoeConfig)],
}


def find_sparse_family(text_config: PreTrainedConfig, *, all_layers: bool, shared_expert: bool) -> SparseFamily:
    """Choose the class for a dense language model.

    Args:
        text_config: Of the dense language model.
        all_layers: Whether every layer turns sparse.
        shared_expert: Whether a shared expert is asked for.

    Raises:
        ValueError: If there is no such class; the message lists what works.
    """
    kind = text_config.model_type
    if kind not in FAMILIES:
        works = ", ".join(f"{dense} (becomes {' or '.join(one.kind for one in families)})" for dense, families in FAMILIES.items())
        raise UserError(f"the language model is a {kind}, which has no mixture-of-experts class here; what works: {works}")
    possible = [one for one in FAMILIES[kind] if (all_layers or one.has_dense_layers) and (one.has_shared_expert or not shared_expert)]
    if possible:
        return possible[0]
    becomes = f"{kind} becomes {FAMILIES[kind][0].kind}"
    if not shared_expert:
        raise UserError(f"{becomes}, whose layers all have experts; pass --layers all")
    others = [dense for dense, families in FAMILIES.items() if any(one.has_shared_expert for one in families)]
    raise UserError(f"{becomes}, whose layers have no shared expert; leave --shared-expert out, or start from {' or '.join(others)}")


def build_sparse_config(dense: PreTrainedConfig, family: SparseFamily, *, sparse_layers: Sequence[int], **experts: Any) -> PreTrainedConfig:
    """Build the configuration of the sparse model around the dense one's.

    Args:
        dense: Of the whole dense model.
        family: Its sparse class.
        sparse_layers: Layers that get experts.
        experts: ``num_experts``, ``num_experts_per_tok``, ``moe_intermediate_size``, ``shared_expert_intermediate_size``.

    Raises:
        ValueError: If the class can't attend as the dense model does.
    """
    text = dense.get_text_config()
    values = {key: value for key, value in text.to_dict().items() if value is not None}
    values |= {family.names.get(name, name): value for name, value in experts.items()}
    values["mlp_only_layers"] = [i for i in range(text.num_hidden_layers) if i not in sparse_layers]
    # The library's default leaves the weights of the chosen experts below a sum of 1.
    values["norm_topk_prob"] = True
    values |= _attention_windows(text, family)
    # Qwen's classes read head_dim from the configuration without declaring it.
    known = family.fields | {"head_dim"}
    kept = {key: value for key, value in values.items() if key in known}
    sparse_text = family.text_config(**(kept | dict(family.values)))
    if family.joint_config is not None:
        return _swap_joint_config(dense, family.joint_config, sparse_text)
    joint = copy.deepcopy(dense)
    joint.text_config = sparse_text
    return joint


def _attention_windows(text: PreTrainedConfig, family: SparseFamily) -> dict[str, Any]:
    """Say which layers attend in a sliding window, in the words of the sparse class: by layer where it can, else one rule for all."""
    window = getattr(text, "sliding_window", None)
    if window is None:
        return {"sliding_window": None}
    # A Mistral has its window in every layer.
    types = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    if "layer_types" in family.fields:
        return {"sliding_window": window, "use_sliding_window": True, "layer_types": types}
    full = set(types) == {"full_attention"}
    if len(set(types)) > 1 or not (full or "sliding_window" in family.fields):
        raise UserError(
            f"some layers of this {text.model_type} attend in a sliding window of {window} tokens and some don't; "
            f"{family.kind} has one rule for all: this model can't be upcycled exactly"
        )
    return {"sliding_window": None if full else window, "use_sliding_window": not full}


def _swap_joint_config(dense: PreTrainedConfig, joint_class: type[PreTrainedConfig], text: PreTrainedConfig) -> PreTrainedConfig:
    values = {field.name: getattr(dense, field.name) for field in dataclasses.fields(joint_class) if hasattr(dense, field.name)}
    vision = dense.vision_config.to_dict()
    # The tower's class of this family has the same weights and another name.
    vision.pop("model_type")
    skipped = ("text_config", "vision_config", "transformers_version", "architectures", "dtype")
    values = {key: value for key, value in values.items() if key not in skipped and not callable(value)}
    return joint_class(**values, text_config=text.to_dict(), vision_config=vision)

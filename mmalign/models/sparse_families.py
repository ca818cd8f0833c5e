"""Which mixture-of-experts class of transformers computes what a dense language model does, and with which configuration."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
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
    """A mixture-of-experts class that dense weights fit into."""

    text_config: type[PreTrainedConfig]
    has_shared_expert: bool = False
    joint_config: type[PreTrainedConfig] | None = None
    """Set where the whole model has a class of its own, and not the language model inside it alone."""


_QWEN3_MOE = SparseFamily(Qwen3MoeConfig)
_QWEN2_MOE = SparseFamily(Qwen2MoeConfig, has_shared_expert=True)
_MIXTRAL = SparseFamily(MixtralConfig)
_QWEN3_VL_MOE = SparseFamily(Qwen3VLMoeTextConfig, joint_config=Qwen3VLMoeConfig)

WORKS = (
    "qwen3 (becomes qwen3_moe), qwen2 (qwen2_moe), llama and mistral (mixtral where all layers turn sparse, else qwen2_moe), "
    "qwen3_vl_text (qwen3_vl_moe_text)"
)


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
    # Mixtral has no dense layers and no shared expert. Without biases, Qwen2-MoE's attention is Llama's.
    llama = _MIXTRAL if all_layers and not shared_expert else _QWEN2_MOE
    families = {"qwen3": _QWEN3_MOE, "qwen2": _QWEN2_MOE, "llama": llama, "mistral": llama, "qwen3_vl_text": _QWEN3_VL_MOE}
    if kind not in families:
        raise UserError(f"the language model is a {kind}, which has no mixture-of-experts class here; what works: {WORKS}")
    if shared_expert and not families[kind].has_shared_expert:
        name = families[kind].text_config.model_type
        raise UserError(
            f"{kind} becomes {name}, whose layers have no shared expert; leave --shared-expert out, or start from qwen2 or llama"
        )
    return families[kind]


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
    known = {field.name for field in dataclasses.fields(family.text_config)}
    # Qwen's classes read head_dim from the configuration without declaring it.
    values = {key: value for key, value in text.to_dict().items() if key in known | {"head_dim"} and value is not None}
    values |= experts | _attention_windows(text, family)
    if family is _MIXTRAL:
        values["intermediate_size"] = values.pop("moe_intermediate_size")
        values["num_local_experts"] = values.pop("num_experts")
    else:
        values["mlp_only_layers"] = [i for i in range(text.num_hidden_layers) if i not in sparse_layers]
    if "norm_topk_prob" in known:
        # The library's default leaves the weights of the chosen experts below a sum of 1.
        values["norm_topk_prob"] = True
    if family is _QWEN2_MOE:
        values["qkv_bias"] = text.model_type == "qwen2"
    else:
        values.pop("shared_expert_intermediate_size")
    sparse_text = family.text_config(**values)
    if family.joint_config is not None:
        return _swap_joint_config(dense, family.joint_config, sparse_text)
    joint = copy.deepcopy(dense)
    joint.text_config = sparse_text
    return joint


def _attention_windows(text: PreTrainedConfig, family: SparseFamily) -> dict[str, Any]:
    """Say which layers attend in a sliding window, in the words of the sparse class."""
    window = getattr(text, "sliding_window", None)
    if window is None:
        return {} if family is _QWEN3_VL_MOE else {"sliding_window": None}
    # A Mistral has its window in every layer.
    types = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    if family is _QWEN2_MOE:
        return {"sliding_window": window, "use_sliding_window": True, "layer_types": types}
    if len(set(types)) > 1:
        raise UserError(
            f"some layers of this {text.model_type} attend in a sliding window of {window} tokens and some don't; "
            f"{family.text_config.model_type} has one rule for all: this model can't be upcycled exactly"
        )
    full = types[0] == "full_attention"
    return {"sliding_window": None if full else window} | ({} if family is _MIXTRAL else {"use_sliding_window": not full})


def _swap_joint_config(dense: PreTrainedConfig, joint_class: type[PreTrainedConfig], text: PreTrainedConfig) -> PreTrainedConfig:
    values = {field.name: getattr(dense, field.name) for field in dataclasses.fields(joint_class) if hasattr(dense, field.name)}
    vision = dense.vision_config.to_dict()
    # The tower's class of this family has the same weights and another name.
    vision.pop("model_type")
    skipped = ("text_config", "vision_config", "transformers_version", "architectures", "dtype")
    values = {key: value for key, value in values.items() if key not in skipped and not callable(value)}
    return joint_class(**values, text_config=text.to_dict(), vision_config=vision)

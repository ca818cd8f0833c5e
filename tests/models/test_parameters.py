"""Parameter counts against sums worked by hand."""

import bitsandbytes
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from mmalign.models.adapters import add_lora
from mmalign.models.parameters import ParameterCounts, count_parameters
from mmalign.options.training import LoraOptions
from tests.tiny_models import QWEN3, build_tiny_llava

SIZES = {
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "tie_word_embeddings": True,
}
# q and o 8 x 8, k and v 4 x 8; norms of q and k 4 each, of the layer's two halves and of the output 8 each.
EMBEDDING, ATTENTION, NORMS = 10 * 8, 2 * 64 + 2 * 32, 2 * 4 + 3 * 8
# gate and up 4 x 8, down 8 x 4.
EXPERT, ROUTER = 3 * 8 * 4, 4 * 8


def build_moe(*, top_k: int) -> Qwen3MoeForCausalLM:
    config = Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=top_k, moe_intermediate_size=4, intermediate_size=16)
    return Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize(("tied", "heads"), [(True, 0), (False, 1)])
def test_dense_model_activates_everything_and_tied_weights_count_once(tied: bool, heads: int) -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES | {"tie_word_embeddings": tied}, intermediate_size=16))
    total = EMBEDDING + ATTENTION + NORMS + 3 * 8 * 16 + heads * EMBEDDING
    assert total == (688 if tied else 768)
    assert count_parameters(model) == ParameterCounts(total=total, trainable=total, activated=total)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_a_token_uses_top_k_experts_and_the_whole_router(top_k: int) -> None:
    rest = EMBEDDING + ATTENTION + NORMS + ROUTER
    counts = count_parameters(build_moe(top_k=top_k))
    assert counts == ParameterCounts(total=rest + 4 * EXPERT, trainable=rest + 4 * EXPERT, activated=rest + top_k * EXPERT)
    assert counts.total == 720


def test_experts_inside_a_multimodal_model_are_found() -> None:
    llm = QWEN3 | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    counts = count_parameters(build_tiny_llava(llm=llm)[0])
    # Two layers, two of four experts unused, each with 3 x 32 x 64 weights.
    assert counts.total - counts.activated == 2 * 2 * 3 * 32 * 64


def test_frozen_weights_are_not_trainable() -> None:
    model = build_moe(top_k=1)
    model.get_input_embeddings().requires_grad_(False)
    assert count_parameters(model).trainable == 720 - EMBEDDING


def test_lora_trains_only_its_own_weights() -> None:
    model, _ = build_tiny_llava()
    before = count_parameters(model).total
    counts = count_parameters(add_lora(model, LoraOptions(lora_rank=2, lora_alpha=4)))
    # A layer's q 64x64, k and v 64x32, o 64x64, gate and up 64x96, down 96x64; the adapter has rank x (in + out) of each.
    adapter = 2 * 2 * (2 * 128 + 2 * 96 + 3 * 160)
    assert (counts.trainable, counts.total) == (adapter, before + adapter)


def test_four_bit_weights_count_as_the_matrix_they_stand_for() -> None:
    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=False).to("cpu")
    assert layer.weight.numel() == 64 * 32 // 2
    assert count_parameters(layer) == ParameterCounts(total=2048, trainable=0, activated=2048)


def test_unfused_experts_are_refused() -> None:
    class ListOfExperts(PreTrainedModel):
        config_class = Qwen3MoeConfig

        def __init__(self) -> None:
            super().__init__(Qwen3MoeConfig(**SIZES, num_experts=2, num_experts_per_tok=1))
            self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.experts[0](x)

    with pytest.raises(ValueError, match="ListOfExperts routes each token to 1 experts, and no layer of it holds fused expert weights"):
        count_parameters(ListOfExperts())


def test_a_projector_that_trains_beside_an_adapter_counts_once() -> None:
    model = build_tiny_llava()[0]
    projector = sum(p.numel() for name, p in model.named_parameters() if "projector" in name)
    plain = count_parameters(add_lora(model, LoraOptions(lora_rank=4)))
    both = count_parameters(add_lora(build_tiny_llava()[0], LoraOptions(lora_rank=4, train_projector=True)))
    assert (both.total, both.trainable, both.activated) == (plain.total, plain.trainable + projector, plain.activated)

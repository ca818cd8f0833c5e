"""A family to upcycle is one entry: a dense class that mmalign does not know, with the sparse class that computes the same."""

import pytest
from transformers import MixtralConfig

from mmalign.models.sparse_families import FAMILIES, SparseFamily
from mmalign.models.upcycle import upcycle
from mmalign.options.models import ExpertsOptions
from tests.models.test_upcycle import PLAIN, assert_same, question
from tests.tiny_models import build_tiny_llava

MINISTRAL = {**PLAIN, "model_type": "ministral", "head_dim": 24}


def test_one_entry_adds_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = {"sliding_window": 4, "layer_types": ["sliding_attention"] * 4}
    dense, processor = build_tiny_llava(llm={**MINISTRAL, **windows}, scale=1.0)
    options = ExpertsOptions(layers=["all"])
    with pytest.raises(ValueError, match="is a ministral, which has no mixture-of-experts class here"):
        upcycle(dense, options)
    names = {"num_experts": "num_local_experts", "moe_intermediate_size": "intermediate_size"}
    monkeypatch.setitem(FAMILIES, "ministral", [SparseFamily(MixtralConfig, names=names)])
    sparse = upcycle(dense, options)
    assert sparse.config.get_text_config().model_type == "mixtral"
    assert_same(dense, sparse, question(processor, "what do you see on the left of the table"))


def test_what_the_class_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a class can do is read from its configuration, so that an entry can't promise too much."""
    mixed = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    dense, _ = build_tiny_llava(llm={**MINISTRAL, **mixed}, scale=1.0)
    monkeypatch.setitem(FAMILIES, "ministral", FAMILIES["mistral"][:1])
    with pytest.raises(ValueError, match="ministral becomes mixtral, whose layers all have experts; pass --layers all"):
        upcycle(dense, ExpertsOptions())
    with pytest.raises(ValueError, match="ministral becomes mixtral, whose layers have no shared expert; .* qwen2 or llama"):
        upcycle(dense, ExpertsOptions(shared_expert=True))
    with pytest.raises(ValueError, match="some layers of this ministral attend in a sliding window of 4 tokens and some don't; mixtral"):
        upcycle(dense, ExpertsOptions(layers=["all"]))

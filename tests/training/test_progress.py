"""A training log as a reader of the terminal sees it."""

from pathlib import Path

import pytest

from mmalign.cli import main
from mmalign.training.progress import format_log
from tests.commands.training import read_log
from tests.data_files import pair_rows, save_rows


def lines(logs: dict[str, float], *, left: float | None = 3725.2) -> list[str]:
    return format_log(logs, step=30, max_steps=1200, passed=61.0, left=left)


def test_step_by_hand() -> None:
    quartiles = {f"rewards/margin_q{number}": 1.0 for number in (1, 2, 3, 4)}
    log = {"loss": 0.44691, "grad_norm": 3.6, "learning_rate": 9.2e-05, "loss/nll": 0.4469, "rewards/margin": 0.88, **quartiles}
    assert lines(log) == ["step    30/1,200  loss 0.4469  margin 0.88  gradient 3.6  lr 9.2e-05  1:02:05 left"]
    assert lines({"loss": 2.0}, left=None) == ["step    30/1,200  loss 2"]


def test_terms_of_a_loss_are_shown_where_there_are_two() -> None:
    assert lines({"loss": 3.0, "loss/kd_labeled": 1.0, "loss/nll": 2.0}, left=None) == ["step    30/1,200  loss 3  kd labeled 1  nll 2"]


def test_a_line_for_each_benchmark() -> None:
    log = {"eval/pope/f1": 0.8125, "eval/pope/random/f1": 0.9, "eval/pope/yes_ratio": 0.5, "eval/chair/recall": 0.75}
    assert lines(log) == ["step    30/1,200  pope: f1 0.8125  yes ratio 0.5", "step    30/1,200  chair: recall 0.75"]


def test_end() -> None:
    assert lines({"train_runtime": 61.0, "train_loss": 0.5}) == ["trained to step 30 in 0:01:01"]


def test_a_run_prints_lines_and_saves_its_log(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_rows(tmp_path / "pairs.parquet", pair_rows(8))
    words = ["--model", str(tiny_llava_dir), "--data", str(data), "--out", str(tmp_path / "run"), "--max-steps", "2", "--batch-size", "4"]
    assert main(["train", "preference", *words, "--logging-steps", "1"]) == 0
    printed, errors = capsys.readouterr()
    assert "{" not in printed
    steps = [line for line in printed.splitlines() if line.startswith("step ")]
    log = read_log(tmp_path / "run")
    for number, line in enumerate(steps):
        assert line.startswith(
            f"step {number + 1}/2  loss {log[number]['loss']:.4g}  margin {log[number]['rewards/margin']:.4g}  accuracy "
        )
        assert line.endswith(" left")
    assert len(steps) == 2
    assert "trained to step 2 in 0:00:0" in printed
    assert "step/s" not in errors, "no bar where there is no terminal"

"""Reward margin and accuracy by quartile of difficulty, over training."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmalign.cli import main
from mmalign.reports.results_table import ModelRun
from mmalign.reports.training_plots import QUARTILE_NAMES, quartile_curves, smooth_points


def log() -> list[dict[str, float]]:
    keys = [f"rewards/{name}_q{number}" for name in ("margin", "accuracy") for number in (1, 2, 3, 4)]
    return [{"step": step, "loss": 0.5, **{key: step / (10 * int(key[-1])) for key in keys}} for step in range(1, 9)]


def save_run(folder: Path, history: list[dict[str, float]]) -> Path:
    folder.mkdir()
    (folder / "train_log.json").write_text(json.dumps(history))
    return folder


def test_smoothing_by_hand() -> None:
    points = [(1.0, 2.0), (2.0, 4.0), (3.0, 9.0), (4.0, -1.0)]
    assert smooth_points(points, 1) == points
    assert smooth_points(points, 3) == [(1.0, 2.0), (2.0, 3.0), (3.0, 5.0), (4.0, 4.0)]


def test_four_curves_easiest_first() -> None:
    curves = quartile_curves(ModelRun(name="a", metrics={}, num_answers={}, log_history=log()), "rewards/margin")
    assert [curve.name for curve in curves] == list(QUARTILE_NAMES)
    assert [curve.points[-1] for curve in curves] == [(8.0, pytest.approx(0.8 / number)) for number in (1, 2, 3, 4)]


def test_figure_has_a_column_a_run(tmp_path: Path) -> None:
    runs = [str(save_run(tmp_path / name, log())) for name in ("dpo", "da")]
    for name in ("figure.png", "figure.svg"):
        assert main(["report", "training", *runs, "--out", str(tmp_path / name)]) == 0
    with Image.open(tmp_path / "figure.png") as two:
        width = two.width
    assert main(["report", "training", runs[0], "--out", str(tmp_path / "one.png")]) == 0
    with Image.open(tmp_path / "one.png") as one:
        assert width > 1.5 * one.width
    svg = (tmp_path / "figure.svg").read_text()
    for text in ("dpo: margin by difficulty", "da: accuracy by difficulty", *QUARTILE_NAMES):
        assert svg.count(f">{text}</text>") == 1
    first = (tmp_path / "figure.svg").read_bytes()
    assert main(["report", "training", *runs, "--out", str(tmp_path / "figure.svg")]) == 0
    assert (tmp_path / "figure.svg").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--out", "f.gif"], "the figure is to be f.gif; expected a name that ends in .png or .svg"),
        (["run", "--out", "f.png", "--smooth", "0"], "smooth is 0; expected a number of logs from 1"),
        (["plain", "--out", "f.png"], "plain has logged no rewards/margin_q1; expected a run of train preference"),
        (["nowhere", "--out", "f.png"], "no train_log.json in nowhere"),
        (["run", "run", "--out", "f.png"], "2 runs and the names run, run; give each its own name"),
    ],
)
def test_what_cant_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "run", log())
    save_run(tmp_path / "plain", [{"step": 1, "loss": 0.5}])
    assert main(["report", "training", *words]) == 2
    assert message in capsys.readouterr().err

"""Training logs as a page, and reward margin and accuracy by quartile of difficulty as a figure."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from mmalign.cli import main
from mmalign.reports.training_plots import QUARTILE_NAMES, TrainingRun, draw_training, quartile_curves, read_points
from tests.reports.html_page import HOSTILE, check_self_contained


def log() -> list[dict[str, float]]:
    keys = [f"rewards/{name}_q{number}" for name in ("margin", "accuracy") for number in (1, 2, 3, 4)]
    return [{"step": step, "loss": 0.5, **{key: step / (10 * int(key[-1])) for key in keys}} for step in range(1, 9)]


def preference_log() -> list[dict[str, float]]:
    quartiles = [{f"rewards/margin_q{number}": step / number for number in range(1, 5)} for step in (1, 2, 3)]
    steps = [
        {
            "step": 10 * i,
            "loss": 0.7 / i,
            "rewards/margin": i / 2,
            "rewards/accuracy": 0.5,
            "logps/chosen_per_token": -i,
            **quartiles[i - 1],
        }
        for i in (1, 2, 3)
    ]
    return [*steps, {"step": 30, "eval/pope/f1": 0.5, "eval/pope/random/f1": 0.4}, {"step": 30, "train_loss": 0.4, "train_runtime": 3.0}]


def save_run(folder: Path, history: list[dict[str, float]], *, method: str = "preference") -> Path:
    folder.mkdir()
    (folder / "train_log.json").write_text(json.dumps(history))
    (folder / "mmalign_run.json").write_text(json.dumps({"method": method, "options": {}, "data": {}, "steps": 1200, "batch": 16}))
    return folder


def test_smoothing_by_hand() -> None:
    log = [{"step": step, "x": value} for step, value in ((1, 2.0), (2, 4.0), (3, 9.0), (4, -1.0))]
    assert read_points([*log, {"step": 5, "y": 1.0}], "x") == [(1.0, 2.0), (2.0, 4.0), (3.0, 9.0), (4.0, -1.0)]
    assert read_points(log, "x", smooth=3) == [(1.0, 2.0), (2.0, 3.0), (3.0, 5.0), (4.0, 4.0)]


def test_drawings_hold_the_logs_numbers() -> None:
    sft = [{"step": 1, "loss": 3.0, "loss/nll": 3.0}, {"step": 2, "loss": 1.0, "loss/nll": 1.0}]
    runs = [TrainingRun("SFT", sft, "sft"), *(TrainingRun(name, preference_log(), "preference") for name in ("DPO", "DA-DPO"))]
    drawings = draw_training(runs)
    labels = [re.search(r'aria-label="([^"]+)"', drawing) for drawing in drawings]
    assert [label.group(1) for label in labels if label] == [
        "Loss of train sft, by step: SFT from 3 to 1.",
        "Loss of train preference, by step: DPO from 0.7 to 0.233; DA-DPO from 0.7 to 0.233.",
        "Reward margin, chosen - rejected, by step: DPO from 0.5 to 1.5; DA-DPO from 0.5 to 1.5.",
        "Pairs with chosen above rejected, by step: DPO from 0.5 to 0.5; DA-DPO from 0.5 to 0.5.",
        *(
            f"{name}: margin by difficulty, by step: easiest quarter from 1 to 3; second from 0.5 to 1.5; "
            "third from 0.333 to 1; hardest quarter from 0.25 to 0.75."
            for name in ("DPO", "DA-DPO")
        ),
        "Logps: chosen per token, by step: DPO from -1 to -3; DA-DPO from -1 to -3.",
        "pope: F1, by step: DPO from 0.5 to 0.5; DA-DPO from 0.5 to 0.5.",
    ]
    for drawing in drawings:
        assert ElementTree.fromstring(str(drawing)).tag == "svg"


def test_page_of_several_methods(tmp_path: Path) -> None:
    hostile = [{"step": 1, "loss": 3.0, f"x/{HOSTILE}": 1.0}]
    runs = [str(save_run(tmp_path / "dpo", preference_log())), str(save_run(tmp_path / "sft", hostile, method="sft"))]
    pages = []
    for name in ("a.html", "b.html"):
        words = [*runs, "--names", "DPO", HOSTILE, "--title", HOSTILE, "--out", str(tmp_path / "pages" / name)]
        assert main(["report", "training", *words]) == 0
        pages.append((tmp_path / "pages" / name).read_text())
    assert pages[0] == pages[1]
    page = check_self_contained(pages[0])
    assert page.texts("h1") == [HOSTILE]
    assert page.texts("dd")[0].endswith("dpo: preference, 1,200 steps of 16 rows")
    assert sum(HOSTILE in alt for tag, alt in page.attributes("aria-label") if tag == "svg") >= 2


def test_four_curves_easiest_first() -> None:
    curves = quartile_curves(TrainingRun("a", log()), "rewards/margin")
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
        (["run", "--out", "f.gif"], "--out is f.gif; expected a name that ends in .html, .png or .svg"),
        (["plain", "--out", "f.png"], "plain has logged no rewards/margin_q1; expected a run of train preference"),
        (["empty", "--out", "f.html"], "empty logged nothing; expected runs of more steps than --logging-steps"),
        (["nowhere", "--out", "f.png"], "no train_log.json in nowhere"),
        (["run", "run", "--out", "f.png"], "2 folders and the names run, run; give each its own name"),
    ],
)
def test_what_cant_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "run", log())
    save_run(tmp_path / "plain", [{"step": 1, "loss": 0.5}])
    save_run(tmp_path / "empty", [])
    assert main(["report", "training", *words]) == 2
    assert message in capsys.readouterr().err

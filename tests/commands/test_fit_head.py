"""``mmalign classifier fit-head`` from images to a classifier that is evaluated, exported and teaches; what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.classifier.class_logits import save_class_logits
from mmalign.classifier.dual_head import load_dual_head
from mmalign.classifier.kernel_head import KernelHead
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.cli import main
from tests.tiny_classifiers import save_colours

BACKBONE = ["--no-pretrained", "--backbone", "resnet10t", "--backbone-options", "{channels: [4, 8, 8, 16], stem_width: 4}"]
SIZE = ["--image-size", "32", "--augmentation", "pad-crop"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, number, seed in (("train", 30, 0), ("validation", 9, 100), ("test", 12, 200)):
        save_colours(folder / f"{name}.parquet", number, seed)
    return folder


@pytest.fixture(scope="module")
def teacher(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A file of logits that calls cats dogs: whatever learns from it does so too."""
    data = load_labeled_images(photos)
    path = tmp_path_factory.mktemp("logits") / "teacher.safetensors"
    sure = 8 * torch.eye(3)[torch.tensor([1, 1, 2])[torch.from_numpy(data.labels)]]
    save_class_logits(path, ids=data.ids, classes=data.classes, logits=sure, source="mistaken")
    return ["--teacher", str(path), "--teacher-kind", "logits"]


def fit(photos: Path, out: Path, *words: str) -> int:
    return main(["classifier", "fit-head", "--data", str(photos), "--out", str(out), *BACKBONE, *SIZE, *words])


def run_or_exit(*words: Any) -> Any:
    """Options that are refused as they are parsed end the program."""
    try:
        return fit(*words)
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def fitted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "head"
    torch.manual_seed(0)
    assert fit(photos, out, "--shots", "4", "--validation-data", str(photos), "--test-data", str(photos)) == 0
    return out


def test_alpha_is_chosen_on_validation_images(fitted: Path) -> None:
    report = json.loads((fitted / "classifier.json").read_text())
    assert report["chosen"]["on"] == "9 validation images"
    assert [one["value"] for one in report["tried"]] == [0.5, 1, 2, 4, 8, 16]
    best = max(report["tried"], key=lambda one: (one["accuracy"], -one["nll"]))
    head = load_dual_head(fitted).ce_head
    assert isinstance(head, KernelHead)
    assert head.alpha == report["chosen"]["value"] == best["value"]
    # What was chosen is what is saved.
    assert report["validation"]["ce_head"]["nll"] == pytest.approx(best["nll"], abs=1e-4)
    assert report["test"]["ce_head"]["accuracy"] > 0.9
    assert head.support.shape == (12, 16)
    assert head.values.sum(0).tolist() == [4, 4, 4]


def test_same_command_writes_the_same_bytes(fitted: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in fitted.iterdir() if path.is_file()}
    words = ["--shots", "4", "--validation-data", str(photos), "--test-data", str(photos)]
    torch.manual_seed(1)
    assert fit(photos, fitted, *words) == 0
    assert {path.name: path.read_bytes() for path in fitted.iterdir() if path.is_file()} == before
    assert "fitted as hilbert" in (fitted / "README.md").read_text()
    assert fit(photos, fitted, *words, "--alpha", "2") == 2
    assert "holds another run: its alpha is None, not 2" in capsys.readouterr().err


def test_it_is_a_classifier_as_any(fitted: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluated to the report's numbers, exported, refused by tune, and a student's teacher."""
    words = ["--data", str(photos), "--cache", str(tmp_path), "--out", str(tmp_path / "result.json")]
    assert main(["classifier", "evaluate", str(fitted), *words]) == 0
    assert capsys.readouterr().out.startswith("12 images\n"), "one head is not mixed"
    result, report = json.loads((tmp_path / "result.json").read_text()), json.loads((fitted / "classifier.json").read_text())
    assert result["scores"]["ce_head"] == pytest.approx(report["test"]["ce_head"])
    assert main(["classifier", "export", str(fitted), "--out", str(tmp_path / "model.pt2")]) == 0
    assert main(["classifier", "tune", str(fitted), "--data", str(photos), "--cache", str(tmp_path)]) == 2
    assert "has a single head" in capsys.readouterr().err
    words = ["--teacher", str(fitted), "--teacher-kind", "classifier", "--form", "kd-only", "--shots", "4", "--test-data", str(photos)]
    steps = ["--max-steps", "2", "--batch-size", "4", "--out", str(tmp_path / "student")]
    assert main(["classifier", "train", "--data", str(photos), *BACKBONE, *SIZE, *words, *steps]) == 0
    student = json.loads((tmp_path / "student" / "classifier.json").read_text())
    assert student["test"]["teacher"] == pytest.approx(report["test"]["ce_head"])


@pytest.mark.parametrize("kernel", ["hilbert", "ridge"])
def test_teacher_votes(fitted: Path, photos: Path, teacher: list[str], tmp_path: Path, kernel: str) -> None:
    """A head of votes alone calls cats dogs, as they do; labels say otherwise where they count more."""
    words = ["--kernel", kernel, "--shots", "4", "--classifier", str(fitted), "--test-data", str(photos)]
    run = ["classifier", "fit-head", "--data", str(photos), *words, *teacher]
    for labels, share, expected in (("teacher", "0.5", 2 / 3), ("both", "0.9", 1.0)):
        out = tmp_path / labels
        assert main([*run, "--labels", labels, "--label-weight", share, "--out", str(out)]) == 0
        report = json.loads((out / "classifier.json").read_text())
        assert report["test"]["ce_head"]["accuracy"] == pytest.approx(expected, abs=0.1)
        assert report["num_support"] == {"teacher": 18, "both": 30}[labels]
        assert report["chosen"]["on"] == "12 labelled images" + (", each left out" if labels == "both" else "")
    backbones = [
        {name: one for name, one in load_file(place / "model.safetensors").items() if name.startswith("backbone.")}
        for place in (fitted, tmp_path / "both")
    ]
    assert all(torch.equal(one, backbones[1][name]) for name, one in backbones[0].items())


@pytest.mark.parametrize("kernel", ["hilbert", "ridge"])
def test_images_that_the_teacher_says_nothing_of_are_no_support(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kernel: str
) -> None:
    data = load_labeled_images(photos)
    logits = 8 * torch.eye(3)[torch.from_numpy(data.labels)]
    logits[:20] = torch.nan
    save_class_logits(tmp_path / "some.safetensors", ids=data.ids, classes=data.classes, logits=logits, source="some")
    save_class_logits(tmp_path / "none.safetensors", ids=data.ids, classes=data.classes, logits=logits * torch.nan, source="none")
    words = ["--shots", "1", "--labels", "teacher", "--kernel", kernel, "--validation-data", str(photos), "--teacher-kind", "logits"]
    assert fit(photos, tmp_path / kernel, *words, "--teacher", str(tmp_path / "some.safetensors")) == 0
    report, split = (json.loads((tmp_path / kernel / name).read_text()) for name in ("classifier.json", "split.json"))
    assert report["num_support"] == sum(int(name.removeprefix("train")) >= 20 for name in split["unlabeled"])
    # Ten images of noisy colours tell most of the others.
    assert report["validation"]["ce_head"]["accuracy"] > 0.6
    assert fit(photos, tmp_path / "none", *words, "--teacher", str(tmp_path / "none.safetensors")) == 2
    assert "no unlabelled image has logits that are finite" in capsys.readouterr().err


def test_one_shot_has_nothing_to_leave_out(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(photos, tmp_path / "a", "--shots", "1") == 2
    assert "no class has two labelled images" in capsys.readouterr().err
    assert fit(photos, tmp_path / "b", "--shots", "1", "--alpha", "3") == 0
    assert load_dual_head(tmp_path / "b").settings.kernel.alpha == 3
    assert "chosen" not in json.loads((tmp_path / "b" / "classifier.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "none of --shots, --label-share and --split-file is given"),
        (["--shots", "4", "--labels", "teacher"], "labels teacher needs --teacher"),
        (["--shots", "4", "--teacher", "x"], "labels true has no use for --teacher"),
        (["--shots", "4", "--penalty", "1"], "penalty is 1.0 and the kernel hilbert; --penalty is for --kernel ridge"),
        (["--shots", "4", "--kernel", "ridge", "--penalty", "0"], "penalty is 0.0; expected a positive number"),
        (["--shots", "4", "--alpha", "nan"], "alpha is nan; expected a finite number"),
        (["--shots", "4", "--labels", "both", "--teacher", "x", "--label-weight", "1"], "label_weight is 1.0; expected a share between"),
        (["--shots", "4", "--classifier", "x"], "backbone is resnet10t, and --classifier x has its own"),
    ],
)
def test_options_that_do_not_fit(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert run_or_exit(photos, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_teacher_needs_images_without_labels(photos: Path, teacher: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(photos, tmp_path / "out", "--label-share", "1", "--labels", "both", *teacher) == 2
    assert "all 30 images are labelled, and the teacher has none to look at" in capsys.readouterr().err

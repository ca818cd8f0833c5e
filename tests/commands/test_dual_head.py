"""``mmalign train dual-head`` from images to a report, an export and a tuned mixing; what it refuses."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.cli import main
from mmalign.data.labeled_images import load_labeled_images
from mmalign.data.teacher_logits import save_teacher_logits
from mmalign.models.dual_head import load_dual_head
from tests.conftest import REPOSITORY
from tests.tiny_classifiers import save_part, save_tiny_clip
from tests.tiny_models import random_image

STUDENT = ["--no-pretrained", "--backbone", "resnet10t", "--backbone-options", "{channels: [4, 8, 8, 16], stem_width: 4}"]
STEPS = ["--max-steps", "3", "--batch-size", "4", "--logging-steps", "1", "--image-size", "32", "--augmentation", "pad-crop"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, number, seed in (("train", 30, 0), ("validation", 9, 100), ("test", 12, 200)):
        save_part(folder / f"{name}.parquet", number, seed)
    return folder


@pytest.fixture(scope="module")
def logits(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = load_labeled_images(photos)
    path = tmp_path_factory.mktemp("logits") / "teacher.safetensors"
    sure = 4 * torch.nn.functional.one_hot(torch.from_numpy(data.labels), 3).float()
    save_teacher_logits(path, ids=data.ids, classes=data.classes, logits=sure, source="the truth")
    return path


def save_clip(clip: Path) -> None:
    texts = ["a photo of a cat.", "a photo of a dog.", "a photo of a frog."]
    save_tiny_clip(clip, texts, max_positions=24, logit_scale_init_value=4.6051702)


def train(photos: Path, out: Path, *words: str) -> int:
    return main(["train", "dual-head", "--data", str(photos), "--out", str(out), *STUDENT, *STEPS, *words])


@pytest.fixture(scope="module")
def trained(photos: Path, logits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "student"
    teacher = ["--teacher", str(logits), "--teacher-kind", "logits", "--shots", "2"]
    assert train(photos, out, *teacher, "--validation-data", str(photos), "--test-data", str(photos)) == 0
    return out


def test_report_has_every_head_side_by_side(trained: Path) -> None:
    report = json.loads((trained / "classifier.json").read_text())
    assert (report["num_labeled"], report["num_unlabeled"], report["teacher_accuracy_unlabeled"]) == (6, 24, 1.0)
    for part in ("validation", "test"):
        assert report[part].keys() == {"ce_head", "kd_head", "mixed", "published"}
    grid = torch.tensor(report["mixing_grid"], dtype=torch.float64)
    assert report["validation"]["mixed"]["accuracy"] == pytest.approx(grid.max().item())
    model = load_dual_head(trained)
    assert model.settings.mixing.source.startswith("tuned on 9 images")
    split = json.loads((trained / "split.json").read_text())
    assert len(split["labeled"]) == 6
    assert not set(split["labeled"]) & set(split["unlabeled"])
    assert json.loads((trained / "mmalign_run.json").read_text())["steps"] == 3


def test_saved_model_is_the_one_that_was_reported(trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate-classifier", str(trained), "--data", str(photos), "--cache", str(tmp_path), "--out", str(tmp_path / "result.json")]
    assert main(words) == 0
    result, report = json.loads((tmp_path / "result.json").read_text()), json.loads((trained / "classifier.json").read_text())
    for head in ("ce_head", "kd_head", "mixed"):
        assert result["scores"][head] == pytest.approx(report["test"][head])
    assert "ce_head" in capsys.readouterr().out


def test_same_command_again_is_the_same_run_and_another_is_refused(
    trained: Path, photos: Path, logits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_file(trained / "model.safetensors")
    teacher = ["--teacher", str(logits), "--teacher-kind", "logits", "--shots", "2"]
    assert train(photos, trained, *teacher, "--validation-data", str(photos), "--test-data", str(photos)) == 0
    after = load_file(trained / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert train(photos, trained, *teacher[:-1], "3", "--validation-data", str(photos), "--test-data", str(photos)) == 2
    assert "holds another run: its shots is 2, this one's 3" in capsys.readouterr().err


def test_mixing_is_never_tuned_on_test_images(trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune-mixing", str(trained), "--cache", str(tmp_path), "--data"]
    assert main([*words, str(photos), "--split", "test"]) == 2
    assert "may not be tuned on test images" in capsys.readouterr().err
    # Under another name they are still the images that the run was tested on.
    assert main([*words, str(photos / "test.parquet")]) == 2
    assert "are the test images of" in capsys.readouterr().err
    assert main([*words, str(photos)]) == 0
    assert "tuned on 9 images" in load_dual_head(trained).settings.mixing.source


def test_export(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained), "--out", str(tmp_path / "model.pt2")]) == 0
    assert "largest difference" in capsys.readouterr().out
    probabilities = torch.export.load(tmp_path / "model.pt2").module()(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "2"], "form dual-head needs --teacher"),
        (["--form", "ce-only"], "none of --shots, --label-share and --split-file is given"),
        (["--form", "ce-only", "--shots", "1", "--label-share", "0.1"], "shots, label_share of --shots"),
        (["--form", "fixmatch", "--shots", "1", "--teacher", "x"], "form fixmatch has no use for --teacher"),
        (["--teacher", "x", "--teacher-kind", "logits", "--teacher-mode", "live", "--shots", "1"], "can't look at live views"),
        (["--teacher", "nowhere/at/all", "--teacher-kind", "classifier", "--shots", "1"], "no classifier at nowhere/at/all"),
    ],
)
def test_options_that_do_not_fit(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert train(photos, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_classifier_of_other_classes_is_no_teacher(photos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("zebra", "dog", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        random_image(1).save(tmp_path / "images" / name / "0.png")
    words = ["--teacher", str(trained), "--teacher-kind", "classifier", "--shots", "1"]
    assert train(tmp_path / "images", tmp_path / "out", *words) == 2
    assert "knows classes cat, dog, frog, ... (3) and the data cat, dog, zebra" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["cached", "live"])
def test_zero_shot_clip_teaches_its_own_tower(photos: Path, tmp_path: Path, mode: str) -> None:
    """A CLIP tower with both heads at the class names, under the same CLIP: the KD loss starts near 0, in its cosine head exactly there."""
    clip = tmp_path / "clip"
    save_clip(clip)
    words = ["--library", "transformers", "--backbone", str(clip), "--text-init", "--kd-head", "cosine", "--image-size", "28"]
    words += ["--teacher", str(clip), "--teacher-mode", mode, "--shots", "2", "--augmentation", "none", "--resize-size", "28"]
    steps = ["--max-steps", "2", "--batch-size", "4", "--logging-steps", "1", "--learning-rate", "1e-6"]
    assert main(["train", "dual-head", "--data", str(photos), "--out", str(tmp_path / "out"), *words, *steps]) == 0
    log = [entry for entry in json.loads((tmp_path / "out" / "train_log.json").read_text()) if "loss" in entry]
    assert log[0]["loss/kd_labeled"] == pytest.approx(0, abs=1e-4)
    assert log[0]["dual_head/teacher_agreement"] == 1.0


def test_few_shot_teacher_is_fitted_on_the_labelled_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip"
    save_clip(clip)
    words = ["--teacher", str(clip), "--teacher-kind", "few-shot", "--shots", "2", "--test-data", str(photos)]
    assert train(photos, tmp_path / "out", *words) == 0
    assert "on its 6 labelled images" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert report["mixing"]["ce_head_weight"] == 0.2
    assert "teacher" in report["test"]


@pytest.mark.slow
def test_two_processes_train_and_report_each_test_image_once(photos: Path, logits: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--data", str(photos), "--out", str(tmp_path / "out"), *STUDENT, *STEPS, "--shots", "4", "--test-data", str(photos)]
    words += ["--teacher", str(logits), "--teacher-kind", "logits", "--trainer", "{use_cpu: true}"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), "-m", "mmalign", "train", "dual-head"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launch, *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "test, 12 images" in done.stdout
    assert json.loads((tmp_path / "out" / "mmalign_run.json").read_text())["steps"] == 3

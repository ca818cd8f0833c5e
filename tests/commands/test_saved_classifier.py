"""Rivals with two heads of which one is used, own weights of a backbone, and sets that are shifted or foreign."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from datasets import ClassLabel, Dataset
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from mmalign.classifier.backbone import build_backbone, load_weights
from mmalign.classifier.class_logits import save_class_logits
from mmalign.classifier.detection import score_detection
from mmalign.classifier.dual_head import load_dual_head
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.classifier.metrics import compute_logits
from mmalign.cli import main
from mmalign.options.classifier import EvaluateClassifierOptions
from mmalign.runs.saved_classifier import decode_for, load_scored
from tests.commands.test_classifier import STEPS, STUDENT, train
from tests.tiny_classifiers import CLASSES, RESNET, save_part
from tests.tiny_models import random_image

WEIGHTED = [word for word in STUDENT if word != "--no-pretrained"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, number, seed in (("train", 30, 0), ("validation", 9, 100), ("test", 12, 200)):
        save_part(folder / f"{name}.parquet", number, seed)
    return folder


@pytest.fixture(scope="module")
def teacher(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = load_labeled_images(photos)
    path = tmp_path_factory.mktemp("logits") / "teacher.safetensors"
    sure = 4 * torch.nn.functional.one_hot(torch.from_numpy(data.labels), 3).float()
    save_class_logits(path, ids=data.ids, classes=data.classes, logits=sure, source="the truth")
    return ["--teacher", str(path), "--teacher-kind", "logits", "--shots", "2"]


@pytest.mark.parametrize("form", ["sskd", "dhkd"])
def test_rivals_are_used_by_their_ce_head(photos: Path, teacher: list[str], tmp_path: Path, form: str) -> None:
    """Also where there are validation images: nothing is tuned."""
    sets = ["--validation-data", str(photos), "--test-data", str(photos)]
    assert train(photos, tmp_path / "out", *teacher, "--form", form, *sets) == 0
    report = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert "mixing_grid" not in report
    for part in ("validation", "test"):
        assert report[part]["mixed"] == pytest.approx(report[part]["ce_head"])
        assert report[part]["kd_head"]["nll"] != pytest.approx(report[part]["ce_head"]["nll"])
    assert load_dual_head(tmp_path / "out").settings.mixing.source == f"{form} uses the CE head alone"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm classifier's weights, head and all."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=5, **RESNET).state_dict(), path)
    return path


def test_backbone_starts_from_a_file(photos: Path, teacher: list[str], weights: Path, tmp_path: Path) -> None:
    words = ["classifier", "train", "--data", str(photos), *WEIGHTED, *STEPS, *teacher, "--freeze-backbone"]
    assert main([*words, "--backbone-weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    own, saved = load_file(weights), load_file(tmp_path / "out" / "model.safetensors")
    backbone = {name.removeprefix("backbone."): value for name, value in saved.items() if name.startswith("backbone.")}
    assert own.keys() - backbone.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, own[name]) for name, value in backbone.items())
    assert f"resnet10t with the weights of {weights}" in (tmp_path / "out" / "README.md").read_text()


def test_weights_of_a_classifier_with_two_heads_leave_both_out(tmp_path: Path) -> None:
    size = {"img_size": 32, "depth": 1}
    own = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **size).state_dict()
    save_file(own, tmp_path / "deit.safetensors")
    backbone = build_backbone("timm", "deit_tiny_distilled_patch16_224", size)
    load_weights(backbone, tmp_path / "deit.safetensors")
    assert own.keys() - backbone.state_dict().keys() == {f"{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")}
    assert all(torch.equal(value, own[name]) for name, value in backbone.state_dict().items())


def test_a_classifier_does_without_the_folder_that_its_backbone_came_from(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_for_hf(timm.create_model("resnet10t", num_classes=7, **RESNET), source, model_args=RESNET, safe_serialization=True)
    values = json.loads((source / "config.json").read_text())
    values["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (source / "config.json").write_text(json.dumps(values))
    words = ["--shots", "2", "--form", "ce-only", "--freeze-backbone", "--backbone", f"local-dir:{source}", "--out", str(tmp_path / "out")]
    assert main(["classifier", "train", "--data", str(photos), *STEPS, *words]) == 0
    own = load_file(source / "model.safetensors")
    source.rename(tmp_path / "elsewhere")
    model = load_dual_head(tmp_path / "out")
    assert (model.settings.architecture, model.settings.preprocessing.mean) == ("resnet10t", (0.1, 0.2, 0.3))
    assert all(torch.equal(value, own[name]) for name, value in model.backbone.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {name: value for name, value in found.items() if name != "conv1.0.weight"}, "lacks conv1.0.weight (1 such weights)"),
        (lambda found: {**found, "neck.weight": torch.zeros(1)}, "has unknown neck.weight (1 such weights)"),
        (lambda found: {**found, "conv1.0.weight": torch.zeros(2, 3, 3, 3)}, "has other shapes of conv1.0.weight (1 such weights)"),
    ],
)
def test_weights_of_something_else_are_refused(
    photos: Path, teacher: list[str], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    save_file(change(load_file(weights)), tmp_path / "other.safetensors")
    words = ["classifier", "train", "--data", str(photos), *WEIGHTED, *STEPS, *teacher, "--out", str(tmp_path / "out")]
    assert main([*words, "--backbone-weights", str(tmp_path / "other.safetensors")]) == 2
    assert message in capsys.readouterr().err


def test_weights_have_one_place(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["classifier", "train", "--data", str(photos), "--shots", "2", "--form", "ce-only", "--out", str(tmp_path / "out")]
    for words, message in (
        (["--no-pretrained", "--backbone-weights", "x.safetensors"], "have no place with --no-pretrained"),
        (["--library", "transformers", "--backbone-weights", "x.safetensors"], "name the folder as --backbone"),
    ):
        with pytest.raises(SystemExit):
            main([*run, *words])
        assert message in capsys.readouterr().err
    assert main([*run, "--backbone-weights", "x.bin"]) == 2
    assert "x.bin not found as a file .safetensors" in capsys.readouterr().err


def test_sets_that_are_shifted_and_foreign(photos: Path, teacher: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(photos, tmp_path / "model", *teacher) == 0
    rows = Dataset.from_parquet(str(photos / "validation.parquet"))
    some = tmp_path / "some.parquet"
    rows.filter(lambda row: row["label"] != 1).to_parquet(some)
    foreign = tmp_path / "foreign.parquet"
    save_part(foreign, 10, 300)
    names = [f"new {name}" for name in CLASSES]
    Dataset.from_parquet(str(foreign)).cast_column("label", ClassLabel(names=names)).to_parquet(foreign)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(10):
        random_image(300 + number).save(flat / f"{number}.png")
    words = ["classifier", "evaluate", str(tmp_path / "model"), "--data", str(photos), "--cache", str(tmp_path / "cache")]
    sets = ["--shifted-data", str(some), str(photos / "validation.parquet"), "--foreign-data", str(foreign), str(flat)]
    assert main([*words, *sets, "--out", str(tmp_path / "result.json")]) == 0
    said = capsys.readouterr().out
    assert "accuracy among 2 of the classifier's 3 classes" in said
    result = json.loads((tmp_path / "result.json").read_text())

    model = load_dual_head(tmp_path / "model")
    options = EvaluateClassifierOptions(model=tmp_path / "model", data=photos, cache=tmp_path / "again")
    inside, two, outside = (
        compute_logits(model, decode_for(options, data, model))[0]
        for data in (load_scored(options), load_labeled_images(some), load_labeled_images(foreign))
    )
    two[:, 1] = -torch.inf
    labels = torch.from_numpy(load_labeled_images(some).labels)
    assert result["shifted"][str(some)]["num_classes"] == 2
    assert result["shifted"][str(some)]["scores"]["ce_head"]["accuracy"] == pytest.approx((two.argmax(-1) == labels).float().mean().item())
    assert result["shifted"][str(photos / "validation.parquet")]["num_classes"] == 3
    expected = score_detection(inside.softmax(-1).amax(-1), outside.softmax(-1).amax(-1))
    assert result["foreign"][str(foreign)]["ce_head"] == pytest.approx(expected)
    assert result["foreign"][str(foreign)].keys() == {"num_images", "ce_head", "kd_head", "mixed"}
    assert result["foreign"][str(flat)] == result["foreign"][str(foreign)]

    capsys.readouterr()
    for more, reason in (
        (["--foreign-data", str(photos / "validation.parquet")], "has images of cat, dog, frog, which the classifier knows"),
        (["--shifted-data", str(foreign)], "and the classes are cat, dog, frog (3); expected no other class"),
    ):
        assert main([*words, *more]) == 2
        told = capsys.readouterr()
        assert reason in told.err
        # Before the first image is looked at.
        assert "mixing" not in told.out

"""The recipes of scripts/dho at smoke size: every option that they set, on tiny models and a few images."""

import json
import math
from pathlib import Path

import pytest

from mmalign.classifier.labeled_images import COOP_SETS
from mmalign.cli import main
from mmalign.config import parse_options
from mmalign.options.classifier import TrainClassifierOptions
from tests.conftest import REPOSITORY
from tests.tiny_classifiers import CLASSES, save_tiny_clip
from tests.tiny_models import random_image

RECIPES = sorted((REPOSITORY / "scripts" / "dho").glob("*.yaml"))
SMOKE = ["--batch-size", "2", "--gradient-accumulation-steps", "1", "--max-steps", "2", "--logging-steps", "1", "--num-workers", "0"]
SMOKE += ["--precision", "float32"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"), [f"a photo of a {name}." for name in CLASSES], max_positions=77)


def save_images(folder: Path, number: int) -> None:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(number):
            random_image(i).save(folder / name / f"{i}.png")


def read_losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((out / "train_log.json").read_text()) if "loss" in entry]


@pytest.mark.parametrize("recipe", [path for path in RECIPES if "pc_" in path.name], ids=lambda path: path.stem)
def test_imagenet(recipe: Path, clip: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "images" / "train", 10)
    save_images(tmp_path / "images" / "val", 2)
    models = ["--backbone", str(clip), "--teacher", str(clip), "--image-size", "28", "--label-share", "0.2", "--validation-share", "0.2"]
    data = ["--data", str(tmp_path / "images"), "--test-data", str(tmp_path / "images" / "val"), "--out", str(tmp_path / "out")]
    assert main(["classifier", "train", "--config", str(recipe), *data, *models, *SMOKE]) == 0
    losses = read_losses(tmp_path / "out")
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    report = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert report["test"].keys() == {"ce_head", "kd_head", "mixed", "published", "teacher"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "an image classifier of 3 classes with two heads" in card
    assert "torch.export.load" in card


def test_imagenet_with_few_shots(clip: Path, tmp_path: Path) -> None:
    """The teacher is a CLIP of transformers here, as open_clip's weights would have to be fetched."""
    save_images(tmp_path / "images" / "train", 10)
    save_images(tmp_path / "images" / "val", 2)
    models = ["--teacher", str(clip), "--teacher-kind", "zero-shot", "--image-size", "32", "--shots", "2", "--validation-share", "0.2"]
    data = ["--data", str(tmp_path / "images"), "--test-data", str(tmp_path / "images" / "val"), "--out", str(tmp_path / "out")]
    recipe = REPOSITORY / "scripts" / "dho" / "imagenet_fewshot.yaml"
    assert main(["classifier", "train", "--config", str(recipe), *data, *models, *SMOKE]) == 0
    assert all(math.isfinite(loss) for loss in read_losses(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "classifier.json").read_text())["test"].keys() >= {"ce_head", "kd_head", "mixed"}


@pytest.mark.parametrize("name", ["oxford_pets", "eurosat"])
def test_fine_grained(name: str, clip: Path, tmp_path: Path) -> None:
    place = COOP_SETS[name]
    save_images(tmp_path / place.images, 6)
    rows = [[f"{label}/{i}.png", number, label] for number, label in enumerate(CLASSES) for i in range(6)]
    parts = {"train": rows[::2], "val": rows[1::4], "test": rows[3::4]}
    (tmp_path / place.split_file).write_text(json.dumps(parts))
    student = ["--no-pretrained", "--backbone", "resnet10t", "--backbone-options", "{channels: [4, 8, 8, 16], stem_width: 4}"]
    words = [
        "--data",
        str(tmp_path),
        "--set",
        name,
        "--shots",
        "1",
        "--teacher",
        str(clip),
        "--image-size",
        "32",
        "--out",
        str(tmp_path / "o"),
    ]
    recipe = REPOSITORY / "scripts" / "dho" / "fine_grained.yaml"
    assert main(["classifier", "train", "--config", str(recipe), *words, *student, *SMOKE]) == 0
    report = json.loads((tmp_path / "o" / "classifier.json").read_text())
    assert (report["num_labeled"], report["num_validation"], report["num_test"]) == (3, len(parts["val"]), len(parts["test"]))
    assert report["mixing"]["source"].startswith(f"tuned on {len(parts['val'])} images")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_headers_name_paper_command_and_published_numbers(recipe: Path) -> None:
    header = recipe.read_text()
    assert "arXiv:2505.07675" in header
    assert f"--config scripts/dho/{recipe.name}" in header
    assert "Published" in header
    options = parse_options(TrainClassifierOptions, ["--config", str(recipe), "--data", "d", "--out", "o"], prog="t", description="")
    assert options.form == "dual-head"

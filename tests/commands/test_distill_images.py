"""``mmalign classifier distill-images`` from photographs to a set that a network is pre-trained on and tuned from; what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file

from mmalign.classifier.class_logits import load_class_logits
from mmalign.classifier.dual_head import load_dual_head
from mmalign.classifier.feature_target import load_target
from mmalign.classifier.image_cache import to_square
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.cli import main
from mmalign.data.images import load_image
from mmalign.options.distill_images import DistillImagesOptions
from mmalign.runs import distill_images
from tests.tiny_classifiers import build_tiny_classifier, save_colours, save_tiny_clip

NETWORK = "{channels: [4, 8, 8, 16], stem_width: 4}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, number, seed in (("train", 30, 0), ("test", 12, 200)):
        save_colours(folder / f"{name}.parquet", number, seed)
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target") / "classifier"
    build_tiny_classifier(seed=3).save_pretrained(folder)
    return folder


def words_of(photos: Path, target: Path, out: Path, *more: str) -> list[str]:
    words = ["classifier", "distill-images", "--data", str(photos), "--target", str(target), "--target-kind", "classifier"]
    words += ["--backbone-options", NETWORK, "--num-images", "6", "--batch-size", "8", "--pool-size", "2", "--online-steps", "2"]
    return [*words, "--steps", "5", "--save-steps", "2", "--logging-steps", "2", "--out", str(out), *more]


def run_or_exit(words: list[str]) -> object:
    """Options that are refused as they are parsed end the program."""
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def learned(photos: Path, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "set"
    assert main(words_of(photos, target, out)) == 0
    return out


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_set_is_a_data_set_with_its_targets(learned: Path, photos: Path) -> None:
    data, real = load_labeled_images(learned), load_labeled_images(photos)
    assert len(data) == 6
    assert data.classes == real.classes
    label = dict(zip(real.ids, real.labels.tolist(), strict=True))
    assert [label[one] for one in data.ids] == data.labels.tolist()
    targets = load_class_logits(learned / "targets.safetensors", ids=data.ids, classes=data.classes)
    assert targets.features is not None
    assert targets.features.shape == (6, 1, 16)
    assert torch.isnan(targets.logits).all()
    log, report = json.loads((learned / "distill_log.json").read_text()), json.loads((learned / "distilled.json").read_text())
    assert [line["step"] for line in log] == [2, 4, 5]
    assert report["last_loss"] == log[-1]["loss"]
    assert (report["num_images"], report["num_real"]) == (6, 30)
    assert Image.open(learned / "sheet.png").size == (6 * 66, 138)
    assert not (learned / "checkpoint.pt").exists()


def test_no_steps_keep_the_real_images(photos: Path, target: Path, tmp_path: Path) -> None:
    """The control: the images that the set begins as, with the target's own features of them."""
    assert main(words_of(photos, target, tmp_path / "out", "--steps", "0")) == 0
    data, real = load_labeled_images(tmp_path / "out"), load_labeled_images(photos)
    place = {name: i for i, name in enumerate(real.ids)}
    begun = [np.asarray(load_image(real.images[place[one]])) for one in data.ids]
    assert all(np.array_equal(np.asarray(load_image(one)), other) for one, other in zip(data.images, begun, strict=True))
    model = load_dual_head(target)
    stacked = torch.from_numpy(np.stack(begun).transpose(0, 3, 1, 2).copy()).float() / 255
    with torch.no_grad():
        expected = model.backbone(model.settings.preprocessing.normalize(stacked))
    found = load_class_logits(tmp_path / "out" / "targets.safetensors", ids=data.ids, classes=data.classes).features
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_stopped_run_ends_in_the_same_bytes(
    learned: Path, photos: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the third step: the checkpoint is of the second."""
    out, step, done = tmp_path / "out", distill_images.ImageDistillation.step, []

    def stopping(self: distill_images.ImageDistillation) -> float:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return step(self)

    monkeypatch.setattr(distill_images.ImageDistillation, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(words_of(photos, target, out))
    assert not (out / "distilled.json").exists()
    monkeypatch.undo()
    assert main(words_of(photos, target, out)) == 0
    ours, theirs = read_bytes(out), read_bytes(learned)
    # The record names the folder, and safetensors writes its metadata in any order.
    assert {name for name in ours if ours[name] != theirs[name]} <= {"mmalign_run.json", "targets.safetensors"}
    features = [load_file(folder / "targets.safetensors")["features"] for folder in (out, learned)]
    assert torch.equal(*features)


def test_a_finished_run_is_left_as_it_is(learned: Path, photos: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_bytes(learned)
    assert main(words_of(photos, target, learned)) == 0
    assert read_bytes(learned) == before
    assert main(words_of(photos, target, learned, "--steps", "6")) == 2
    assert "holds another run: its steps is 5, not 6" in capsys.readouterr().err


SHARED = ["--backbone", "resnet10t", "--image-size", "32", "--augmentation", "pad-crop", "--batch-size", "4"]


def pretrain(data: Path, out: Path, *more: str) -> int:
    words = ["classifier", "train", "--data", str(data), *SHARED, "--no-pretrained", "--backbone-options", NETWORK, "--out", str(out)]
    words += ["--form", "feature-kd", "--feature-loss", "mse", "--label-weight", "0", "--label-share", "1", "--unlabeled-per-label", "0"]
    words += ["--teacher", str(data / "targets.safetensors"), "--teacher-kind", "logits", "--logging-steps", "1"]
    return main([*words, *more])


def test_images_without_classes_make_the_same_set(learned: Path, photos: Path, target: Path, tmp_path: Path) -> None:
    """And a backbone is pre-trained on it: each image is a class of its own."""
    (tmp_path / "photos").mkdir()
    Dataset.from_parquet(str(photos / "train.parquet")).remove_columns("label").to_parquet(tmp_path / "photos" / "train.parquet")
    out = tmp_path / "set"
    assert main(words_of(tmp_path / "photos", target, out)) == 0
    assert torch.equal(*(load_file(folder / "targets.safetensors")["features"] for folder in (out, learned)))
    assert pretrain(out, tmp_path / "pre", "--max-steps", "2") == 0


def test_pretrained_on_the_set_then_tuned(learned: Path, photos: Path, tmp_path: Path) -> None:
    """The backbone that learned the set is what the next training begins with, bit for bit."""
    assert pretrain(learned, tmp_path / "pre", "--max-steps", "12", "--learning-rate", "1e-2") == 0
    losses = [line["loss"] for line in json.loads((tmp_path / "pre" / "train_log.json").read_text()) if "loss" in line]
    assert losses[-1] < losses[0]
    weights = tmp_path / "pre" / "backbone.safetensors"
    network = NETWORK.replace("}", f", pretrained_cfg_overlay: {{file: '{weights}'}}}}")
    words = ["classifier", "train", "--data", str(photos), *SHARED, "--backbone-options", network, "--form", "ce-only", "--shots", "4"]
    words += ["--freeze-backbone", "--test-data", str(photos), "--max-steps", "1", "--out", str(tmp_path / "tuned")]
    assert main(words) == 0
    tuned = load_file(tmp_path / "tuned" / "model.safetensors")
    assert all(torch.equal(tuned[f"backbone.{name}"], one) for name, one in load_file(weights).items())


def load(kind: str, target: str, **more: object) -> tuple[int, tuple[int, ...]]:
    """The target's side, and the shape of its features of two images."""
    options = DistillImagesOptions(data=Path("x"), out=Path("x"), target=target, target_kind=kind, **more)  # type: ignore[arg-type]
    found = load_target(options, device=torch.device("cpu"))
    side = found.preprocessing.image_size
    square = to_square(Image.new("RGB", (40, 30), "red"), side)
    return side, tuple(found(torch.from_numpy(np.stack([square, square]))).shape)


def test_targets_of_every_kind(target: Path, tmp_path: Path) -> None:
    assert load("classifier", str(target)) == (32, (2, 16))
    assert load("classifier", str(target), target_size=48) == (48, (2, 16))
    clip = save_tiny_clip(tmp_path / "clip", ["a cat", "a dog"], max_positions=16)
    assert load("transformers", str(clip)) == (28, (2, 16))
    load_dual_head(target).save_backbone(tmp_path)
    overlay = {"file": str(tmp_path / "backbone.safetensors")}
    options = {"channels": [4, 8, 8, 16], "stem_width": 4, "pretrained_cfg_overlay": overlay}
    assert load("timm", "resnet10t", target_options=options, target_size=32) == (32, (2, 16))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-images", "1"], "num_images is 1; expected at least 2"),
        (["--num-images", "31"], "num_images is 31 and there are 30 real images"),
        (["--steps", "-1"], "steps is -1; expected at least 0"),
        (["--target-options", "{x: 1}"], "target_options are for --target-kind timm, and it is classifier"),
        (["--target-size", "0"], "target_size is 0; expected at least 1"),
        (["--pool-size", "0"], "pool_size is 0; expected at least 1"),
        (["--target", "nowhere"], "no classifier at nowhere"),
        (["--backbone", "resnet10x"], "timm has no model 'resnet10x'"),
    ],
)
def test_what_cannot_be_used(
    photos: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run_or_exit(words_of(photos, target, tmp_path / "out", *words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "mmalign_run.json").exists(), "a mended command can take the folder"


def test_a_damaged_checkpoint_is_named(
    photos: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(distill_images, "save", lambda *parts: None)
        assert main(words_of(photos, target, out)) == 0
    checkpoint = out / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert main(words_of(photos, target, out)) == 2
    assert f"{checkpoint} is damaged" in capsys.readouterr().err


def test_mean_squared_error_is_for_features(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["classifier", "train", "--data", str(photos), "--shots", "1", "--out", str(tmp_path / "out"), "--feature-loss", "mse"]
    assert run_or_exit(words) == 2
    assert "feature_loss is mse and the form dual-head; --feature-loss is for --form feature-kd" in capsys.readouterr().err

"""Folders as people have them: split folders in any spelling, hidden folders, files of any kind."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.classifier.image_cache import cache_images
from mmalign.classifier.image_folders import find_split
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.classifier.training_images import load_sources
from mmalign.data.images import SUFFIXES
from mmalign.data.rejects import Rejects
from mmalign.options.classifier import TrainClassifierOptions
from tests.odd_images import encode
from tests.tiny_models import random_image

NAMES = ("cat", "dog")


def save_images(*folders: Path, number: int = 2, suffix: str = ".png") -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(number):
            (folder / f"{i}{suffix}").write_bytes(encode(random_image(i)))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "Train", "TRAIN", "Training", "training_set", "train-images", "images_train", "train2017")],
        *[(name, "train") for name in ("trainset", "TrainData", "trainval")],
        *[(name, "validation") for name in ("val", "valid", "Validation", "val_images", "valImages", "dev", "VAL", "imgs val")],
        *[(name, "test") for name in ("test", "Testing", "test set", "Test_Data")],
        *[(name, "evaluation") for name in ("eval", "Evaluation")],
        *[(name, None) for name in ("cat", "images", "data", "train_station", "valley", "tester", "train_test", "latest", "")],
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert find_split(name) == split


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("train_images", "val_images", "test_images"),
        ("TRAIN", "valid", "TEST"),
        ("seg_train", "seg_val", "seg_test"),
        ("fold1 train", "fold1 val", "fold1 test"),
    ],
)
def test_every_spelling_is_the_same_data(tmp_path: Path, train: str, validation: str, test: str) -> None:
    for number, part in enumerate((train, validation, test), start=1):
        save_images(*(tmp_path / part / name for name in NAMES), number=number)
    for number, split in enumerate(("train", "validation", "test"), start=1):
        found = load_labeled_images(tmp_path, split=split)
        assert found.classes == NAMES
        assert found.labels.tolist() == [0] * number + [1] * number
        assert found.notes == ()


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    save_images(*(tmp_path / part / name for part in ("Training", "eval") for name in NAMES))
    with pytest.raises(ValueError, match=r"has Training, eval and nothing for split 'test'; name the folder itself, such as .*eval"):
        load_labeled_images(tmp_path, split="test")
    assert load_labeled_images(tmp_path / "eval", split="test").classes == NAMES
    save_images(tmp_path / "train" / "cat")
    with pytest.raises(ValueError, match=r"and Training and train for split 'train'; name the folder itself"):
        load_labeled_images(tmp_path)


def test_classes_that_are_called_like_splits(tmp_path: Path) -> None:
    """A vehicle, a valley and a railway station: folders of images, and folders of folders whose names only begin alike."""
    save_images(*(tmp_path / "vehicles" / name for name in ("car", "plane", "train")))
    assert load_labeled_images(tmp_path / "vehicles").classes == ("car", "plane", "train")
    save_images(*(tmp_path / "places" / name / "indoor" for name in ("airport", "train_station", "valley")))
    with pytest.raises(ValueError, match=r"places has train_station, valley and nothing for split 'test'"):
        # Two such names of folders in folders can be meant as splits: better asked than guessed.
        load_labeled_images(tmp_path / "places", split="test")
    save_images(*(tmp_path / "places2" / name / "indoor" for name in ("airport", "train_station", "harbour")))
    assert load_labeled_images(tmp_path / "places2").classes == ("airport", "harbour", "train_station")


def test_what_has_no_classes_is_refused(tmp_path: Path) -> None:
    save_images(tmp_path / "flat" / "train", tmp_path / "flat" / "test")
    with pytest.raises(ValueError, match=r"test, train in .*flat hold images without a folder for each class"):
        load_labeled_images(tmp_path / "flat")
    save_images(*(tmp_path / "zip" / "photos" / name for name in NAMES))
    with pytest.raises(ValueError, match=r"has the one folder photos, which holds folders; name the folder .* such as .*zip/photos"):
        load_labeled_images(tmp_path / "zip")
    save_images(*(tmp_path / "within" / name / split for name in NAMES for split in ("train", "test")))
    with pytest.raises(ValueError, match=r"class folders of .*within hold splits \(test, train\).* move the splits above the classes"):
        load_labeled_images(tmp_path / "within")
    with pytest.raises(ValueError, match=r"no images at .*nowhere"):
        load_labeled_images(tmp_path / "nowhere")


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_images(*(tmp_path / split / name for name in NAMES))
        save_images(*(tmp_path / split / name for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "cat/.ipynb_checkpoints")))
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png"):
            (tmp_path / split / "cat" / name).write_bytes(b"left behind")
    save_images(tmp_path / "__MACOSX" / "train", tmp_path / ".git" / "refs")
    found = load_labeled_images(tmp_path)
    assert found.classes == NAMES
    assert found.ids == ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    assert found.notes == ()


def test_every_format_that_is_decoded_is_read(tmp_path: Path) -> None:
    kinds = {".jpg": "JPEG", ".JPEG": "JPEG", ".tif": "TIFF", ".TIFF": "TIFF", ".gif": "GIF", ".ppm": "PPM", ".avif": "AVIF"}
    kinds |= {".jp2": "JPEG2000", ".bmp": "BMP", ".webp": "WEBP", ".png": "PNG", ".jfif": "JPEG", ".pgm": "PPM", ".apng": "PNG"}
    assert {suffix.lower() for suffix in kinds} <= SUFFIXES
    for name in NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for suffix, kind in kinds.items():
            (tmp_path / "data" / name / f"a{suffix}").write_bytes(encode(random_image(0), kind))
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.0)
    found = cache_images(load_labeled_images(tmp_path / "data"), tmp_path / "cache", side=8, rejects=rejects)
    assert len(found.ids) == 2 * len(kinds)


def test_what_is_passed_over_is_counted_aloud(tmp_path: Path) -> None:
    save_images(*(tmp_path / "train" / name for name in (*NAMES, "extra")))
    for name in ("a.heic", "b.heic", "notes.txt"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"")
    (tmp_path / "train" / "dog" / "noname").write_bytes(b"")
    for path in (tmp_path / "train" / "extra").iterdir():
        path.unlink()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "loose.png")
    save_images(tmp_path / "test" / "cat", tmp_path / "unsorted")
    found = load_labeled_images(tmp_path)
    assert found.classes == ("cat", "dog", "extra")
    assert found.notes == (
        f"skipped folders beside the splits of {tmp_path}: unsorted",
        "skipped 4 files (.heic: 2, .txt: 1, no suffix: 1) that mmalign doesn't read as images, such as cat/a.heic",
        "skipped 1 files (.png: 1) beside the class folders, such as loose.png: they have no class",
        f"{tmp_path} (train) has no image of class extra (1)",
    )


def test_links_are_followed_once(tmp_path: Path) -> None:
    """Sets are put together of links to folders; a link to a folder above it ends nothing."""
    save_images(tmp_path / "data" / "cat", tmp_path / "elsewhere" / "dogs", tmp_path / "data" / "dog")
    (tmp_path / "data" / "dog" / "more").symlink_to(tmp_path / "elsewhere" / "dogs")
    (tmp_path / "data" / "dog" / "above").symlink_to(tmp_path / "data" / "dog")
    (tmp_path / "data" / "bird").symlink_to(tmp_path / "elsewhere")
    found = load_labeled_images(tmp_path / "data")
    assert dict(zip(found.classes, np.bincount(found.labels).tolist(), strict=True)) == {"bird": 2, "cat": 2, "dog": 4}


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    """A class on a disk that is not mounted; of a single image the reader tells."""
    save_images(*(tmp_path / "train" / name for name in NAMES))
    (tmp_path / "train" / "frog").symlink_to(tmp_path / "elsewhere")
    found = load_labeled_images(tmp_path)
    assert found.classes == NAMES
    assert found.notes == (f"skipped links of {tmp_path / 'train'} that lead nowhere: frog",)


def test_parts_of_a_set_that_look_like_classes_are_told(tmp_path: Path) -> None:
    save_images(*(tmp_path / "parts" / part / name for part in ("augmented", "original") for name in NAMES))
    found = load_labeled_images(tmp_path / "parts")
    assert found.classes == ("augmented", "original")
    (note,) = found.notes
    assert note.startswith(
        "the classes augmented, original (2) each hold the folders cat, dog (2), whose images are read as one class; if these are"
    )
    save_images(*(tmp_path / "classes" / name / place for name in NAMES for place in ("images", f"more {name}")))
    assert load_labeled_images(tmp_path / "classes").notes == ()


def test_a_split_unpacked_on_another_system_has_the_same_classes(tmp_path: Path) -> None:
    save_images(tmp_path / "train" / "caf\u00e9", tmp_path / "train" / "bar", tmp_path / "test" / "cafe\u0301")
    train = load_labeled_images(tmp_path)
    test = load_labeled_images(tmp_path, split="test").with_classes(train.classes, what="test")
    assert [test.classes[label] for label in test.labels] == ["caf\u00e9"] * 2
    assert test.notes == ("test has no image of class bar (1)",)


def test_one_class_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    save_images(tmp_path / "data" / "cat")
    options = TrainClassifierOptions(data=tmp_path / "data", out=tmp_path / "out", shots=1, form="ce-only", max_steps=1)
    with pytest.raises(ValueError, match=r"data has the classes cat; expected at least two, a folder of images for each"):
        load_sources(options)

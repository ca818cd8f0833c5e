"""Objects of COCO's images from its annotations: by hand, in both benchmarks' ways, and through the scorer that reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.coco_objects import main
from mmalign.evaluation.captions import read_object_sets
from mmalign.evaluation.chair import load_chair

pytestmark = pytest.mark.usefixtures("nltk_words")

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 6, "name": "bus"}, {"id": 46, "name": "wine glass"}]
WORDS = "dog, puppy\nbus\nwine glass\nperson, man, men\n"
# Image 9 has no annotation at all.
INSTANCES: dict[str, list[tuple[int, int]]] = {"train": [(1, 18), (1, 18)], "val": [(2, 6)]}
CAPTIONS: dict[str, list[tuple[int, str]]] = {
    "train": [(1, "Men and wine glasses."), (1, "A bus")],
    "val": [(2, "Two buses and a puppy"), (2, "Nothing")],
}


@pytest.fixture
def nltk_words(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data"), *nltk.data.path])


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for part, image in (("train", 1), ("val", 2)):
        images: list[dict[str, Any]] = [{"id": image}, *([{"id": 9}] if part == "val" else [])]
        instances = [{"image_id": i, "category_id": category} for i, category in INSTANCES[part]]
        captions = [{"image_id": i, "id": 70 + i, "caption": text} for i, text in CAPTIONS[part]]
        files = {"instances": {"categories": CATEGORIES, "annotations": instances}, "captions": {"annotations": captions}}
        for kind, content in files.items():
            (tmp_path / f"{kind}_{part}2014.json").write_text(json.dumps({"images": images, **content}))
    (tmp_path / "synonyms.txt").write_text(WORDS)
    return tmp_path


@pytest.mark.parametrize(
    ("benchmark", "first"),
    [
        # By rule "bus" becomes "bu", so that the caption's bus is missed; "men" becomes man.
        ("chair", ["dog", "person", "wine glass"]),
        # WordNet keeps both, and takes men for the noun man.
        ("object-halbench", ["bus", "dog", "person", "wine glass"]),
    ],
)
def test_objects_by_hand(coco: Path, benchmark: str, first: list[str]) -> None:
    out = coco / "coco_objects.json.gz"
    assert main([str(coco), "--words", str(coco / "synonyms.txt"), "--out", str(out), "--benchmark", benchmark]) == 0
    assert read_object_sets(out) == {"1": frozenset(first), "2": frozenset({"bus", "dog"}), "9": frozenset()}
    once = out.read_bytes()
    main([str(coco), "--words", str(coco / "synonyms.txt"), "--out", str(out), "--benchmark", benchmark])
    assert out.read_bytes() == once


def test_chair_scores_against_them(coco: Path) -> None:
    main([str(coco), "--words", str(coco / "synonyms.txt"), "--out", str(coco / "coco_objects.json")])
    got = load_chair(coco).score({"1": "A puppy and two buses."}, mode="official")
    assert (got["chair/sentence"], got["chair/instance"], got["chair/recall"]) == (1.0, 0.5, pytest.approx(1 / 3))


def test_refusals(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(coco), "--words", str(coco / "synonyms.txt"), "--out"]
    assert main([*words, str(coco / "truth.json")]) == 2
    assert "expected a name with 'objects'" in capsys.readouterr().err
    (coco / "synonyms.txt").write_text("dog\nbus\n")
    assert main([*words, str(coco / "objects.json")]) == 2
    assert "the word list has no wine glass" in capsys.readouterr().err
    (coco / "captions_val2014.json").unlink()
    assert main([*words, str(coco / "objects.json")]) == 2
    assert "has no captions_val2014.json; unpack annotations_trainval2014.zip" in capsys.readouterr().err

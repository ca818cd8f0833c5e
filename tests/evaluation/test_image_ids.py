"""Ids of images: paths, file names, COCO's numbers, and ids that differ only in what others leave out."""

import json
from pathlib import Path

import pytest

from mmalign.evaluation.answers import Answer, read_answers
from mmalign.evaluation.captions import read_object_sets
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.image_ids import ImageIds, is_coco_file, read_coco_id


@pytest.mark.parametrize(
    "text",
    [
        "40468",
        "000000040468",
        "000000040468.jpg",
        "COCO_val2014_000000040468",
        "COCO_val2014_000000040468.jpg",
        "/data/coco/val2014/COCO_val2014_000000040468.jpg",
        "val2014\\COCO_val2014_000000040468.jpg",
        "images/000000040468.png",
    ],
)
def test_what_stands_for_a_coco_image(text: str) -> None:
    assert read_coco_id(text) == "40468"
    assert ImageIds(["40468", "7"]).find(text) == "40468"
    assert ImageIds(["COCO_val2014_000000040468.jpg", "7"]).find(text) == "COCO_val2014_000000040468.jpg"


def test_other_names() -> None:
    ids = ImageIds(["street 1.png", "b/a.jpg", "0012.jpg", "12.jpg", "v1.5"])
    assert ids.find("/x/street 1.png") == ids.find("street 1") == "street 1.png"
    assert (ids.find("b/a.jpg"), ids.find("a.jpg"), ids.find("v1.5")) == ("b/a.jpg", "b/a.jpg", "v1.5")
    assert (ids.find("0012.jpg"), ids.find("/y/12.jpg"), ids.find("12"), ids.find("0012")) == ("0012.jpg", "12.jpg", "12.jpg", "0012.jpg")
    with pytest.raises(ValueError, match=r"image '00012.jpg' may be any of 0012.jpg, 12.jpg; write the id as the object sets do"):
        ids.find("00012.jpg")
    assert ids.find("nowhere.jpg") == "nowhere.jpg"
    assert is_coco_file("/x/COCO_val2014_000000000001.jpg")
    assert not is_coco_file("000000000001.jpg")


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "objects.json").write_text('{"1": ["dog"], "1": ["cat"]}')
    with pytest.raises(ValueError, match=r"objects.json holds no object sets \('1' stands there twice\)"):
        read_object_sets(tmp_path / "objects.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "synonyms.txt").write_text("dog, puppy\ncat\n")
    (tmp_path / "objects.json").write_text(json.dumps({"1": ["dog"], "2": ["cat"]}))
    return tmp_path


NAME = "COCO_val2014_000000000002.jpg"


@pytest.mark.parametrize(
    "value",
    [
        {"image_id": f"/data/val2014/{NAME}", "caption": "A dog."},
        {"image": NAME, "caption": "A dog."},
        {"image_path": f"/data/{NAME}", "response": "A dog."},
        {"file_name": NAME, "caption": "A dog."},
        # A number that only counts, though an image has it too.
        {"question_id": 1, "image": NAME, "prompt": "Describe.", "text": "A dog.", "answer_id": "x", "model_id": "m"},
        {"id": 1, "image": f"val2014/{NAME}", "response": "A dog."},
        {"id": 9, "image_id": 2, "caption": "A dog."},
        {NAME: "A dog."},
        {"/data/" + NAME: "A dog."},
        {"2": "A dog."},
    ],
)
def test_captions_of_an_image(folder: Path, value: dict[str, object]) -> None:
    (folder / "a.json").write_text(json.dumps(value))
    assert read_answers(folder / "a.json", load_chair(folder).form) == [Answer("2", "A dog.")]


def test_images_whose_names_differ_in_zeros_are_two(folder: Path, nltk_words: None) -> None:
    (folder / "objects.json").write_text(json.dumps({"0012.jpg": ["dog"], "12.jpg": ["cat"]}))
    chair = load_chair(folder)
    (folder / "a.jsonl").write_text('{"image_id": "0012.jpg", "caption": "A dog."}\n{"image_id": "12.jpg", "caption": "A dog."}')
    answers = {row.id: row.response for row in read_answers(folder / "a.jsonl", chair.form)}
    assert chair.score(answers, mode="official")["chair/sentence"] == 0.5
    (folder / "a.jsonl").write_text('{"image_id": 12, "caption": "A dog."}\n{"image_id": "000000000012.jpg", "caption": "A dog."}')
    with pytest.raises(ValueError, match=r"may be any of 0012.jpg, 12.jpg"):
        read_answers(folder / "a.jsonl", chair.form)

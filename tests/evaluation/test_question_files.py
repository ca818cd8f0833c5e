"""The benchmarks' files as people have them: the hub's Parquet, MME's release, answers and results beside the questions."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from mmalign.cli import main
from mmalign.evaluation.answers import match_answers, read_answers
from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.hallusionbench import load_hallusionbench
from mmalign.evaluation.mme import load_mme
from mmalign.evaluation.mmhal import load_mmhal
from mmalign.evaluation.object_halbench import load_object_halbench
from mmalign.evaluation.pope import load_pope
from tests.evaluation.test_hallusionbench import RECORDS
from tests.tiny_models import random_image


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    random_image(seed).save(buffer, format="PNG")
    return buffer.getvalue()


def write_hub_pope(folder: Path, *, shards: int = 1) -> list[dict[str, Any]]:
    """As the hub has it: all splits in one table, the image as a struct, its name without an ending."""
    rows = [
        {
            "id": str(number),
            "question_id": str(i),
            "question": f"Is there a {name} in the image?",
            "answer": answer,
            "image_source": f"COCO_val2014_00000000000{i}",
            "image": {"bytes": png(i), "path": None},
            "category": split,
        }
        for number, (split, i, name, answer) in enumerate(
            (split, i, name, answer)
            for split in ("adversarial", "popular", "random")
            for i, name, answer in ((1, "dog", "yes"), (2, split, "no"))
        )
    ]
    features = Features({**{name: Value("string") for name in rows[0]}, "image": ImageFeature()})
    table = Dataset.from_list(rows, features=features)
    (folder / "data").mkdir()
    for shard in range(shards):
        table.shard(shards, shard).to_parquet(str(folder / "data" / f"test-{shard:05}-of-{shards:05}.parquet"))
    return rows


@pytest.mark.parametrize("shards", [1, 2])
def test_pope_of_the_hub(tmp_path: Path, shards: int) -> None:
    rows = write_hub_pope(tmp_path, shards=shards)
    pope = load_pope(tmp_path)
    assert [item.id for item in pope.records] == [f"{row['category']}/{row['question_id']}" for row in rows]
    assert pope.questions()[0][:3] == ("adversarial/1", "COCO_val2014_000000000001.jpg", "Is there a dog in the image?")
    assert [item.is_yes for item in pope.records] == [True, False] * 3
    assert pope.holds_images
    assert pope.write_images(tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"COCO_val2014_00000000000{i}.jpg" for i in (1, 2)]
    with Image.open(tmp_path / "images" / "COCO_val2014_000000000001.jpg") as image:
        assert image.tobytes() == random_image(1).tobytes()


def test_pope_rows_of_the_hub_as_json(tmp_path: Path) -> None:
    row = {"question_id": "1", "question": "Is there a dog?", "answer": "Yes", "image_source": "COCO_val2014_000000000001"}
    (tmp_path / "pope.jsonl").write_text(json.dumps({**row, "category": "popular"}))
    item = load_pope(tmp_path).records[0]
    assert (item.id, item.image, item.is_yes) == ("popular/1", "COCO_val2014_000000000001.jpg", True)
    (tmp_path / "pope.jsonl").write_text(json.dumps({**row, "category": "other"}))
    with pytest.raises(ValueError, match=r"a row's category is 'other'; expected one of random, popular, adversarial"):
        load_pope(tmp_path)
    (tmp_path / "pope.jsonl").write_text("\n".join([json.dumps({**row, "category": "random"})] * 2))
    with pytest.raises(ValueError, match=r"holds 1 questions twice \(first: random/1\)"):
        load_pope(tmp_path)


def test_pictures_may_not_leave_their_folder(tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": "yes", "image_source": "../out", "category": "random", "image": {"bytes": png(0), "path": None}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"an image is named '../out.jpg', which lies outside"):
        load_pope(tmp_path).write_images(tmp_path / "images")


def write_release(folder: Path, *, images: bool) -> None:
    """The folders of MME_Benchmark_release_version: flat, or with images and questions apart."""
    for place, pictures, stem, names in (
        ("existence", "existence", "000000006040", ("dog", "cat")),
        ("color/questions_answers_YN", "color/images", "000000012120", ("red car", "blue car")),
        ("landmark/questions_answers_YN", "landmark/images", "x", ("tower", "bridge")),
    ):
        (folder / place).mkdir(parents=True)
        lines = [f"Is there a {name} in this image? Please answer yes or no.\t{a}" for name, a in zip(names, ("Yes", "No"), strict=True)]
        (folder / place / f"{stem}.txt").write_text("\r\n".join(lines) + "\n")
        if images:
            (folder / pictures).mkdir(exist_ok=True)
            random_image(0).save(folder / pictures / f"{stem}.png")


@pytest.mark.parametrize("images", [True, False])
def test_mmes_release_folders(tmp_path: Path, images: bool) -> None:
    write_release(tmp_path, images=images)
    mme = load_mme(tmp_path)
    ending = "png" if images else "jpg"
    assert mme.required() == [f"{name}.{ending}/{i}" for name in ("existence/000000006040", "color/000000012120") for i in (1, 2)]
    assert [q.image for q in mme.questions()] == [f"existence/000000006040.{ending}"] * 2 + [f"color/images/000000012120.{ending}"] * 2
    assert mme.images_in(tmp_path) == tmp_path
    assert all((tmp_path / str(question.image)).is_file() for question in mme.questions()) is images
    # The result files of its own tool, which name the image with the ending that the release has.
    results = tmp_path / "results"
    results.mkdir()
    for category, stem in (("existence", "000000006040"), ("color", "000000012120")):
        lines = [f"{stem}.jpg\t{item.text}\t{'Yes' if item.is_yes else 'No'}\tYes" for item in mme.records if item.category == category]
        (results / f"{category}.txt").write_text("\n".join(lines))
    answers = match_answers(read_answers(results, mme.form, texts=mme.texts()), required=mme.required())
    assert mme.score(answers, mode="official")["mme/total"] == 100.0
    (tmp_path / "existence" / "000000006040.txt").write_text("Is it?\tYes\tNo\n")
    with pytest.raises(ValueError, match=r"000000006040.txt, line 1 has 3 cells; expected question and answer with a tab"):
        load_mme(tmp_path)


def test_mme_of_the_hub_holds_its_images(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": f"{category}/a.png",
            "category": category,
            "question": f"Is it {k}?",
            "answer": ("Yes", "No")[k],
            "image": {"bytes": png(k), "path": None},
        }
        for category in ("landmark", "existence")
        for k in range(2)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    mme = load_mme(tmp_path)
    assert mme.holds_images
    assert mme.write_images(tmp_path / "images")
    assert [path.name for path in (tmp_path / "images").rglob("*.png")] == ["a.png"]
    assert (tmp_path / "images" / "existence" / "a.png").read_bytes() == png(0)


POPE = [{"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}]
MME = [{"question_id": "existence/a.jpg", "category": "existence", "question": f"Is it {k}?", "answer": "Yes"} for k in range(2)]
MMHAL = [{"question_type": "other", "image_id": "a", "image_src": "", "image_content": ["Dog"], "question": "?", "gt_answer": "A dog."}]
HALBENCH = [{"image_id": 1, "question": "Describe.", "image": "aGk="}]


@pytest.mark.parametrize(
    ("name", "rows", "answers", "load"),
    [
        ("coco_pope_random.json", POPE, {"question": "Is there a dog?", "answer": "Yes"}, load_pope),
        ("coco_pope_random.json", POPE, {"question_id": 1, "prompt": "Is there a dog?", "text": "Yes"}, load_pope),
        ("mme.jsonl", MME, {**MME[0], "response": "No"}, load_mme),
        ("HallusionBench.json", RECORDS, {**RECORDS[0], "model_prediction": "Yes"}, load_hallusionbench),
        ("mmhal-bench_answer_template.json", MMHAL, {**MMHAL[0], "model_answer": "A dog."}, load_mmhal),
    ],
    ids=["pope", "llava", "mme", "hallusionbench", "mmhal"],
)
@pytest.mark.parametrize("named", [True, False], ids=["these", "others"])
def test_answers_beside_the_questions(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], answers: dict[str, Any], load: Callable[..., Benchmark], named: bool
) -> None:
    """The answers to be scored, or another model's, are no questions; nor are results that were saved into the same folder."""
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    expected = load(tmp_path).required()
    beside = tmp_path / f"{name.partition('.')[0]}_answers.jsonl"
    beside.write_text(json.dumps(answers))
    (tmp_path / "pope.json").write_text(json.dumps({"benchmark": "pope", "metrics": {}}, indent=1))
    (tmp_path / "mmhal.json").write_text(json.dumps({"benchmark": "mmhal", "metrics": {}}, indent=1))
    assert load(tmp_path, answers=beside if named else None).required() == expected
    assert load(tmp_path, answers=beside).files == [tmp_path / name]


def test_answers_beside_object_lists(tmp_path: Path) -> None:
    (tmp_path / "synonyms.txt").write_text("dog\n")
    (tmp_path / "synonyms_refine.txt").write_text("dog\n")
    (tmp_path / "coco_objects.json").write_text('{"1": ["dog"]}')
    (tmp_path / "captions_of_objects.json").write_text('[{"image_id": 1, "caption": "A dog."}]')
    (tmp_path / "obj_halbench_300_with_image.jsonl").write_text("\n".join(map(json.dumps, HALBENCH)))
    (tmp_path / "halbench_answers.jsonl").write_text('{"image_id": 1, "question": "Describe.", "answer": "A dog."}')
    assert list(load_chair(tmp_path, answers=tmp_path / "captions_of_objects.json").truths) == ["1"]
    (tmp_path / "captions_of_objects.json").unlink()
    assert load_object_halbench(tmp_path, answers=tmp_path / "halbench_answers.jsonl").required() == ["1"]
    assert load_object_halbench(tmp_path).required() == ["1"]


def test_a_question_file_that_was_filled_in_serves_as_both(tmp_path: Path) -> None:
    (tmp_path / "HallusionBench_result.json").write_text(json.dumps([{**row, "model_prediction": "Yes"} for row in RECORDS]))
    assert len(load_hallusionbench(tmp_path, answers=tmp_path / "HallusionBench_result.json").records) == len(RECORDS)


@pytest.mark.parametrize("name", ["pope", "mme"])
def test_a_model_is_asked_about_images_that_the_data_hold(tmp_path: Path, tiny_llava_dir: Path, name: str) -> None:
    """The hub's images from its Parquet, the release's beside its questions, without --images."""
    (write_hub_pope(tmp_path) if name == "pope" else write_release(tmp_path, images=True))
    words = ["evaluate", name, "--data", tmp_path, "--model", tiny_llava_dir, "--out", tmp_path / "out", "--max-new-tokens", 2]
    assert main([str(word) for word in words]) == 0
    result = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert result["num_answers"] == (6 if name == "pope" else 4)


def test_what_a_system_leaves_beside_the_files_is_none_of_them(tmp_path: Path) -> None:
    """As macOS does on disks and in archives of others."""
    question = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "coco_pope_random.json").write_text(json.dumps(question))
    write_release(tmp_path / "mme", images=False)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "existence.txt").write_text("000000006040.jpg\tIs there a dog in this image?\tYes\tYes\n")
    leave_beside(tmp_path)
    assert load_pope(tmp_path / "pope").required() == ["random/1"]
    mme = load_mme(tmp_path / "mme")
    assert len(mme.required()) == 4
    assert mme.read_answers(tmp_path / "results")[0].response == "Yes"


@pytest.mark.usefixtures("nltk_words")
def test_nor_of_chairs(tmp_path: Path) -> None:
    (tmp_path / "synonyms.txt").write_text("dog\nowl\n")
    (tmp_path / "objects.json").write_text('{"7": ["dog"]}')
    leave_beside(tmp_path)
    assert load_chair(tmp_path).truths == {"7": frozenset({"dog"})}


def leave_beside(folder: Path) -> None:
    """Leave a hidden file beside each, as macOS does."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")

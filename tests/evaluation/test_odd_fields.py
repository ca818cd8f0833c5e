"""Fields of question files that hold something else: named with the file, in every benchmark, and no traceback."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmalign.options.evaluate import EvaluateOptions
from mmalign.runs.answering import evaluate
from mmalign.runs.evaluate import load_benchmark
from tests.evaluation.test_hallusionbench import RECORDS

MMHAL = {
    "question_type": "other",
    "image_id": "a",
    "image_content": ["Dog"],
    "question": "What?",
    "gt_answer": "A dog.",
    "image_src": "a/1.jpg",
}
SCENE = {"id": 1, "type": "generative", "truth": ["sky"], "hallu": []}


@pytest.mark.parametrize(
    ("benchmark", "file", "row", "field"),
    [
        ("hallusionbench", "HallusionBench.json", {**RECORDS[-1], "visual_input": "1", "filename": "./a.png"}, "filename"),
        ("mmhal", "mmhal.json", MMHAL, "image_content"),
        ("mmhal", "mmhal.json", MMHAL, "image_src"),
        ("amber", "annotations.json", SCENE, "truth"),
        ("amber", "annotations.json", SCENE, "hallu"),
        ("amber", "annotations.json", SCENE, "type"),
    ],
)
@pytest.mark.parametrize("value", [7, [7]])
def test_a_field_of_another_kind_is_a_users_error(tmp_path: Path, benchmark: str, file: str, row: Any, field: str, value: Any) -> None:
    (tmp_path / "relation.json").write_text('{"sky": []}')
    (tmp_path / "safe_words.txt").write_text("")
    (tmp_path / file).write_text(json.dumps([row]))
    options = EvaluateOptions(benchmark=benchmark, data=tmp_path, similarity="exact")
    load_benchmark(options)
    (tmp_path / file).write_text(json.dumps([{**row, field: value}]))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_benchmark(options)


def test_associations_are_texts(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps([SCENE]))
    (tmp_path / "safe_words.txt").write_text("")
    (tmp_path / "relation.json").write_text('{"sky": null}')
    with pytest.raises(ValueError, match=r"relation.json: the words of sky are None; expected a list of texts"):
        load_benchmark(EvaluateOptions(benchmark="amber", data=tmp_path, similarity="exact"))


@pytest.mark.parametrize(
    ("benchmark", "words", "questions"),
    [("chair", "synonyms.txt", "chair.jsonl"), ("object-halbench", "synonyms_refine.txt", "obj_halbench_300.jsonl")],
)
def test_images_without_objects_are_named(tmp_path: Path, benchmark: str, words: str, questions: str) -> None:
    (tmp_path / words).write_text("dog\n")
    (tmp_path / "objects.json").write_text('{"7": ["dog"]}')
    rows = [{"id": i, "image_id": i, "image": "", "question": "Describe it."} for i in (7, 12)]
    (tmp_path / questions).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"{questions} asks about 1 images whose objects .*objects.json does not hold \(first: 12\)"):
        load_benchmark(EvaluateOptions(benchmark=benchmark, data=tmp_path))


def test_empty_answers_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run of failed requests leaves them, and POPE's own parser reads each as a yes."""
    rows = [{"question_id": i, "image": "a.jpg", "text": f"Is there a {i}?", "label": "yes"} for i in (1, 2, 3)]
    (tmp_path / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ("", " ", "No"), ("Yes", "<think>yes", "No")
    for texts in said:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": i, "response": text}) + "\n" for i, text in enumerate(texts, start=1)))
        evaluate(EvaluateOptions(benchmark="pope", data=tmp_path, answers=tmp_path / "a.jsonl"))
    assert [record.message for record in caplog.records if "empty, and" in record.message] == [
        "2 of 3 answers are empty, and are scored as they are; was every one of them asked for?"
    ]

"""Object HalBench: lists of a judge, phrases, scores by hand, the fallback without a judge."""

import base64
import json
from pathlib import Path

import pytest

from mmalign.evaluation.answers import match_answers, read_answers
from mmalign.evaluation.judging import read_judgements
from mmalign.evaluation.object_halbench import ObjectHalBench, load_object_halbench, read_phrase_with_nltk, read_phrases
from mmalign.evaluation.object_words import build_double_words
from mmalign.evaluation.verdicts import parse_list


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('["dog", "car"]', ["dog", "car"]),
        ("[]", []),
        ('Here you are:\n["dog"]', ["dog"]),
        ('Sure.\n```json\n[\n "dog"\n]\n```\nDone.', ["dog"]),
        ("dog, car", None),
        ('{"objects": ["dog"]}', ["dog"]),
        ("[1]", None),
        ("", None),
    ],
)
def test_lists(reply: str, expected: list[str] | None) -> None:
    assert parse_list(reply) == expected


def test_phrases(nltk_words: None) -> None:
    double_words = build_double_words(["wine glass", "dining table"])
    phrases = ["two dogs", "wine glasses on a dining table", "dogs", "young man", "baby bird"]
    assert read_phrases(phrases, double_words, read_phrase_with_nltk) == ["dog", "wine glass", "dining table", "man", "bird"]


SYNONYMS = "person, man, woman\ndog, puppy\ncar\ndining table, table, coffee table\n"


@pytest.fixture
def bench(tmp_path: Path) -> ObjectHalBench:
    (tmp_path / "synonyms_refine.txt").write_text(SYNONYMS)
    (tmp_path / "coco_objects.json").write_text(json.dumps({"1": ["person", "dog"], "2": ["car"], "3": ["car"], "4": []}))
    image = base64.b64encode(b"bytes of a picture").decode()
    rows = [{"image_id": i, "question": "Describe.", "image": image} for i in (1, 2, 3, 4)]
    (tmp_path / "obj_halbench_300_with_image.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_object_halbench(tmp_path)


ANSWERS = {
    "1": "A man and a woman with a puppy.",
    "2": "Assistant: A dog and a car in a street",
    "3": "Nothing at all here.",
    "4": "A dog.",
}


def test_judged_scores_by_hand(bench: ObjectHalBench, nltk_words: None) -> None:
    prompts = bench.judge_prompts(ANSWERS)
    # Two words are too short to name anything, and are not asked about.
    assert list(prompts) == ["1", "2", "3"]
    assert "Answer: A dog and a car in a street\n" in prompts["2"]
    judgements = {"1": '["man", "woman", "puppy"]', "2": '["dog", "car", "dogs"]', "3": "[]"}
    got = bench.score(ANSWERS, mode="official", judgements=judgements)
    # Named: person, person, dog | dog, car (dogs is the dog again) | none | none. Wrong: the dog of 2.
    assert got == pytest.approx(
        {
            "object_halbench/response": 1 / 2,
            "object_halbench/mention": 1 / 5,
            "object_halbench/sentence": 1 / 4,
            "object_halbench/recall": 3 / 4,
            "object_halbench/average_length": (8 + 8 + 4 + 2) / 4,
            "object_halbench/unreadable": 0,
        }
    )


def test_without_a_judge_words_are_looked_up(bench: ObjectHalBench, nltk_words: None) -> None:
    got = bench.score(ANSWERS, mode="official")
    # person, person, dog | dog, car | none | dog: two of six wrong, in two of three that name any.
    assert (got["object_halbench/mention"], got["object_halbench/response"]) == pytest.approx((2 / 6, 2 / 3))
    assert (bench.variant(judged=False), bench.variant(judged=True).split(",")[0]) == ("words", "judge")


def test_a_reply_that_is_no_list_is_left_out_and_counted(bench: ObjectHalBench, nltk_words: None) -> None:
    judgements = {"1": '["man", "woman", "puppy"]', "2": "dog and car", "3": "[]"}
    got = bench.score(ANSWERS, mode="official", judgements=judgements)
    # person, person, dog | none | none of the one that was not judged.
    expected = {"response": 0, "mention": 0, "sentence": 0, "average_length": (8 + 4 + 2) / 3, "unreadable": 1}
    assert got | {f"object_halbench/{name}": value for name, value in expected.items()} == pytest.approx(got)
    (said,) = bench.decisions
    items = {item.id: item for item in bench.items(ANSWERS, mode="official", judgements=judgements)}
    assert [bench.decisions[said].find(items[i]) for i in ("1", "2", "3")] == ["present", None, "none"]


def test_no_readable_list_stops_scoring(bench: ObjectHalBench) -> None:
    with pytest.raises(ValueError, match="none of 2 judgements is a JSON list of strings: 2: 'dog and car'; 3: 'none'"):
        bench.score(ANSWERS, mode="official", judgements={"2": "dog and car", "3": "none"})


def test_answer_and_judgement_files(bench: ObjectHalBench, tmp_path: Path) -> None:
    rows = [{"question": "Describe.", "answer": text} for text in ANSWERS.values()]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert match_answers(read_answers(tmp_path / "a.jsonl", bench.form, order=bench.required()), required=bench.required()) == ANSWERS
    (tmp_path / "j.json").write_text(json.dumps([{"image_id": i, "extract_objs": ["dog"]} for i in (1, 2, 3, 4)]))
    got = read_judgements(tmp_path / "j.json", bench.judgement_form, asked=["1", "3"], order=bench.required()).texts
    assert got == {"1": '["dog"]', "3": '["dog"]'}


def test_images_of_the_question_file(bench: ObjectHalBench, tmp_path: Path) -> None:
    assert bench.write_images(tmp_path / "images")
    names = [str(question.image) for question in bench.questions()]
    assert all((tmp_path / "images" / name).read_bytes() == b"bytes of a picture" for name in names)

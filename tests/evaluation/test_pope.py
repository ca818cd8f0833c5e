"""POPE: the original parser's quirks, splits and their mean, answer formats, the released files."""

import json
import time
from pathlib import Path

import pytest

from mmalign.evaluation.answers import Answer, match_answers, read_answers
from mmalign.evaluation.pope import Pope, PopeQuestion, load_pope, parse_official

OFFICIAL_YES = [
    "",
    "NO",
    "No!",
    '"No"',
    "**No**",
    "\nNo",
    "None",
    "I cannot see..",
    "isn't",
    "Not sure",
    "Yes,no",
    "1. No, it",
    ". No",
    "Yes",
]
OFFICIAL_NO = ["No", "no", "No, there is.", "Yes, it is not blurry", "yes, no doubt", "No dog. Yes ...", "It is not"]


@pytest.mark.parametrize("answer", OFFICIAL_YES)
def test_official_counts_as_yes(answer: str) -> None:
    assert parse_official(answer)


@pytest.mark.parametrize("answer", OFFICIAL_NO)
def test_official_counts_as_no(answer: str) -> None:
    assert not parse_official(answer)


def question(i: int, split: str = "random", is_yes: bool = True) -> PopeQuestion:
    return PopeQuestion(f"{split}/{i}", split, "a.png", "Is there a dog in the image?", is_yes)


def test_splits_and_their_mean() -> None:
    pope = Pope([], [question(1), question(2, is_yes=False), question(1, "popular"), question(2, "popular", is_yes=False)])
    answers = {"random/1": "Yes", "random/2": "No", "popular/1": "Yes", "popular/2": "Yes"}
    got = pope.score(answers, mode="official")
    assert (got["pope/random/accuracy"], got["pope/popular/accuracy"], got["pope/accuracy"]) == (1.0, 0.5, 0.75)
    assert got["pope/f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert "pope/adversarial/f1" not in got
    assert got["pope/always_yes/random/f1"] == pytest.approx(2 / 3)
    assert got["pope/always_no/f1"] == 0


def test_modes_differ_on_what_is_neither() -> None:
    pope = Pope([], [question(1), question(2, is_yes=False)])
    answers = {"random/1": "", "random/2": "NO!"}
    official, strict = (pope.score(answers, mode=mode) for mode in ("official", "strict"))
    assert (official["pope/accuracy"], official["pope/yes_ratio"], official["pope/unknown"]) == (0.5, 1.0, 0)
    assert (strict["pope/accuracy"], strict["pope/yes_ratio"], strict["pope/unknown"]) == (0.5, 0.0, 1)


def test_released_questions_read_whole_and_score_fast(shared_data: Path) -> None:
    start = time.process_time()
    pope = load_pope(shared_data / "benchmarks" / "pope")
    assert (len(pope.files), len(pope.records), sum(item.is_yes for item in pope.records)) == (3, 9000, 4500)
    got = pope.score({item.id: "Yes" if item.is_yes else "No" for item in pope.records}, mode="official")
    assert got["pope/f1"] == 1.0
    assert (got["pope/always_yes/f1"], got["pope/always_no/accuracy"]) == (pytest.approx(2 / 3), 0.5)
    # A third of a second; minutes where each answer looks through all questions.
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "row",
    [
        {"id": "random/{}", "response": "Yes"},
        {"id": "{}", "response": "Yes"},
        {"question_id": "{}", "prompt": "?", "text": "Yes", "model_id": "llava"},
        {"question_id": "{}", "category": "random", "text": "Yes"},
        {"question": "Is there a dog in the image?", "answer": "Yes"},
    ],
)
def test_answer_formats(tmp_path: Path, row: dict[str, str]) -> None:
    pope = Pope([], [question(1), question(2)])
    lines = [json.dumps({key: value.format(i) for key, value in row.items()}) for i in (1, 2)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    got = match_answers(read_answers(tmp_path / "a.jsonl", pope.form, order=pope.required()), required=pope.required())
    assert got == {"random/1": "Yes", "random/2": "Yes"}


def test_a_folder_of_answers_by_split(tmp_path: Path) -> None:
    pope = Pope([], [question(1), question(1, "popular")])
    for split, answer in (("random", "Yes"), ("popular", "No")):
        (tmp_path / f"coco_pope_{split}.json").write_text(json.dumps({"question": "?", "answer": answer}))
    assert read_answers(tmp_path, pope.form) == [Answer("popular/1", "No"), Answer("random/1", "Yes")]


def test_files_that_are_not_pope(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no POPE questions at"):
        load_pope(tmp_path)
    row = {"question_id": 1, "image": "a.png", "text": "?", "label": "maybe"}
    (tmp_path / "pope_random.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="label of question 1 is 'maybe'; expected yes or no"):
        load_pope(tmp_path)
    (tmp_path / "pope_odd.jsonl").write_text(json.dumps({**row, "label": "no"}))
    with pytest.raises(ValueError, match=r"pope_odd.jsonl names no split"):
        load_pope(tmp_path / "pope_odd.jsonl")


def test_rows_without_ids_must_be_in_order(tmp_path: Path) -> None:
    """A file of all splits in another order than the questions' would mix up the splits, and its labels alternate all the same."""
    pope = Pope([], [PopeQuestion(f"random/{i}", "random", "a.png", f"Is there a {name}?", True) for i, name in ((1, "dog"), (2, "cat"))])
    rows = [{"question": f"Is there a {name}?\nAnswer shortly.", "answer": name} for name in ("dog", "cat")]

    def read(*rows: dict[str, str]) -> dict[str, str]:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return {row.id: row.response for row in read_answers(tmp_path / "a.jsonl", pope.form, order=pope.required(), texts=pope.texts())}

    assert read(*rows) == {"random/1": "dog", "random/2": "cat"}
    assert read({"answer": "x"}, {"answer": "y"}) == {"random/1": "x", "random/2": "y"}
    with pytest.raises(ValueError, match=r"row 1 answers 'Is there a cat\?.*but question random/1 is 'Is there a dog\?'.*give each its id"):
        read(*reversed(rows))


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.png", "text": "?", "label": "yes"}
    for name in ("coco_pope_random.json", "aokvqa_pope_random.json"):
        (tmp_path / name).write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"more than one file of split random: aokvqa_pope_random.json, coco_pope_random.json"):
        load_pope(tmp_path)
    (tmp_path / "coco_pope_random.json").write_text(json.dumps({"question": "?", "answer": "Yes"}))
    with pytest.raises(ValueError, match="a row has keys question, answer; expected question_id, image, text, label"):
        load_pope(tmp_path / "coco_pope_random.json")


def test_a_folder_may_hold_arrays(tmp_path: Path) -> None:
    """The A-OKVQA and GQA sets are arrays."""
    row = {"question_id": 1, "image": "a.png", "text": "?", "label": "yes"}
    (tmp_path / "gqa_pope_popular.json").write_text(json.dumps([row]))
    pope = load_pope(tmp_path)
    answers = tmp_path / "answers"
    answers.mkdir()
    (answers / "popular.json").write_text(json.dumps([{"question": "?", "answer": "No"}]))
    assert read_answers(answers, pope.form) == [Answer("popular/1", "No")]

"""POPE: the original parser's quirks, hand-worked metrics, refusals, the released files."""

import json
from pathlib import Path

import pytest

from mmalign.evaluation.answers import read_answers
from mmalign.evaluation.pope import PopeQuestion, binary_metrics, load_pope, parse_official, parse_strict, score_pope

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


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("NO", False),
        ("**No**", False),
        ("yes, no doubt", True),
        ("", None),
        ("None", None),
        ("1. No, it", False),
        ("Nobody says yes", True),
    ],
)
def test_strict(answer: str, expected: bool | None) -> None:
    assert parse_strict(answer) is expected


def test_metrics_by_hand() -> None:
    # 3 true positives, 1 false positive, 1 miss, 1 right no, 1 unknown with label yes.
    labels = [True, True, True, False, True, False, True]
    replies = [True, True, True, True, False, False, None]
    got = binary_metrics(labels, replies)
    assert got == pytest.approx({"accuracy": 4 / 7, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes_ratio": 4 / 7, "unknown": 1.0})


def test_constant_answers_are_defined() -> None:
    labels = [True, False, True, False]
    assert binary_metrics(labels, [False] * 4)["f1"] == 0
    assert binary_metrics(labels, [True] * 4) == pytest.approx(
        {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_ratio": 1.0, "unknown": 0.0}
    )


def question(i: int, split: str = "random", is_yes: bool = True) -> PopeQuestion:
    return PopeQuestion(f"{split}/{i}", split, "a.png", "Is there a dog in the image?", is_yes)


def test_splits_and_their_mean() -> None:
    questions = [question(1), question(2, is_yes=False), question(1, "popular"), question(2, "popular", is_yes=False)]
    answers = {"random/1": "Yes", "random/2": "No", "popular/1": "Yes", "popular/2": "Yes"}
    got = score_pope(questions, answers)
    assert (got["pope/random/accuracy"], got["pope/popular/accuracy"], got["pope/accuracy"]) == (1.0, 0.5, 0.75)
    assert got["pope/f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert "pope/adversarial/f1" not in got
    assert got["pope/random/always_yes_f1"] == pytest.approx(2 / 3)


def test_missing_and_foreign_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 questions have no answer: random/2; generate them, or pass --allow-partial"):
        score_pope([question(1), question(2)], {"random/1": "Yes"})
    with pytest.raises(ValueError, match="1 answers belong to no question: random/9"):
        score_pope([question(1)], {"random/1": "Yes", "random/9": "No"}, allow_partial=True)
    assert score_pope([question(1), question(2)], {"random/1": "Yes"}, allow_partial=True)["pope/accuracy"] == 1.0


def test_broken_answer_files(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "response": "x"}\n{"id": "a", "response": "y"}\n')
    with pytest.raises(ValueError, match="answers 'a' twice"):
        read_answers(path)
    path.write_text('{"id": "a", "text": "x"}\n')
    with pytest.raises(ValueError, match=r"row 1 has keys id, text; expected id and response"):
        read_answers(path)
    path.write_text('{"id": "a"\n')
    with pytest.raises(ValueError, match="line 1"):
        read_answers(path)


def test_released_questions_read_whole(shared_data: Path) -> None:
    questions, files = load_pope(shared_data / "benchmarks" / "pope")
    assert len(files) == 3
    assert len(questions) == 9000
    assert sum(question.is_yes for question in questions) == 4500
    got = score_pope(questions, {question.id: "Yes" if question.is_yes else "No" for question in questions})
    assert got["pope/f1"] == 1.0


def test_files_that_are_not_pope(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no POPE questions at"):
        load_pope(tmp_path)
    row = {"question_id": 1, "image": "a.png", "text": "?", "label": "maybe"}
    (tmp_path / "pope_random.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="label of question 1 is 'maybe'; expected yes or no"):
        load_pope(tmp_path)
    (tmp_path / "pope_odd.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"pope_odd.jsonl names no split"):
        load_pope(tmp_path / "pope_odd.jsonl")

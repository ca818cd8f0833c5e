"""MME: the parser's quirks, points by hand, pairs, file formats."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mmalign.evaluation.answers import match_answers, read_answers
from mmalign.evaluation.mme import Mme, load_mme, parse_official


@pytest.mark.parametrize("answer", ["yes", "Yes.", " YES ", "y", "Y.", "yesterday", "Yes, it is"])
def test_official_yes(answer: str) -> None:
    assert parse_official(answer) is True


@pytest.mark.parametrize("answer", ["no", "No.", "n", "not", "nope", "none", "nobody", "a no", "**no**", "No, it is not"])
def test_official_no(answer: str) -> None:
    assert parse_official(answer) is False


@pytest.mark.parametrize("answer", ["", "x", "the answer is yes", "**yes**", "a yes"])
def test_official_neither(answer: str) -> None:
    assert parse_official(answer) is None


ROWS = [
    {"question_id": f"{category}/{i}.png", "category": category, "image": f"{category}/{i}.png", "question": question, "answer": answer}
    for category, images in (("existence", 2), ("color", 1))
    for i in range(images)
    for question, answer in (("Is it so? Please answer yes or no.", "Yes"), ("Is it not? Please answer yes or no.", "No"))
]


@pytest.fixture
def mme(tmp_path: Path) -> Mme:
    other = {"question_id": "x", "category": "landmark", "image": "x", "question": "?", "answer": "Yes"}
    (tmp_path / "mme.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, other])))
    return load_mme(tmp_path)


def test_points_by_hand(mme: Mme) -> None:
    assert mme.required()[:2] == ["existence/0.png/1", "existence/0.png/2"]
    replies = ["Yes", "No", "Yes", "Yes", "unsure", "No"]
    got = mme.score(dict(zip(mme.required(), replies, strict=True)), mode="official")
    # Existence: 3 of 4 right, 1 of 2 images whole. Colour: 1 of 2 right.
    assert (got["mme/existence/accuracy"], got["mme/existence/accuracy_plus"], got["mme/existence"]) == (75.0, 50.0, 125.0)
    assert (got["mme/color"], got["mme/total"], got["mme/unknown"]) == (50.0, 175.0, 1)
    assert "mme/position" not in got
    assert (got["mme/always_yes/total"], got["mme/always_no/existence"]) == (100.0, 50.0)


def test_half_an_image_is_not_scored(mme: Mme) -> None:
    got = mme.score({"existence/0.png/1": "Yes", "existence/0.png/2": "No", "existence/1.png/1": "No"}, mode="official")
    assert (got["mme/existence"], got["mme/total"]) == (200.0, 200.0)


@pytest.mark.parametrize("mode", ["by place", "by text", "by id"])
def test_answers_by_question_id(mme: Mme, tmp_path: Path, mode: str) -> None:
    rows = [{"question_id": row["question_id"], "question": row["question"], "response": row["answer"]} for row in ROWS]
    if mode == "by place":
        rows = [{"id": row["question_id"], "response": row["response"]} for row in rows]
    elif mode == "by text":
        # In another order, and with another request behind the question.
        rows = [row | {"question": row["question"].replace("Please answer yes or no.", "Answer shortly.")} for row in reversed(rows)]
    else:
        rows = [{"id": i, "response": row["response"]} for i, row in zip(mme.required(), rows, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answers = match_answers(read_answers(tmp_path / "a.jsonl", mme.form), required=mme.required())
    assert mme.score(answers, mode="official")["mme/total"] == 400.0


def test_result_files_of_the_original(mme: Mme, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    for category in ("existence", "color"):
        rows = [row for row in ROWS if row["category"] == category]
        lines = ["\t".join((row["image"].split("/")[1], row["question"], row["answer"], row["answer"])) for row in rows]
        (results / f"{category}.txt").write_text("\n".join(lines) + "\n")
    answers = match_answers(read_answers(results, mme.form), required=mme.required())
    assert mme.score(answers, mode="official")["mme/total"] == 400.0
    (results / "color.txt").write_text("a\tb\n")
    with pytest.raises(ValueError, match=r"color.txt, line 1 has 2 cells"):
        read_answers(results, mme.form)


def test_a_third_answer_on_an_image_is_foreign(mme: Mme, tmp_path: Path) -> None:
    rows = [{"id": row["question_id"], "response": "Yes"} for row in [*ROWS, ROWS[0]]]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"1 answers belong to no question: existence/0.png"):
        match_answers(read_answers(tmp_path / "a.jsonl", mme.form), required=mme.required())


def test_parquet_and_refusals(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{**row, "image": {"bytes": b"", "path": None}} for row in ROWS])
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    assert [question.image for question in load_mme(tmp_path).questions()[:2]] == ["existence/0.png"] * 2
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, ROWS[:3])))
    with pytest.raises(ValueError, match=r"1 images of .* have not two questions: existence/1.png"):
        load_mme(tmp_path / "odd.jsonl")
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ValueError, match="none.jsonl holds no rows"):
        load_mme(tmp_path / "none.jsonl")

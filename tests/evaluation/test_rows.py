"""Rows of files: Parquet, one object, replies of endpoints and their batches, Git LFS pointers."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mmalign.evaluation.answers import Answer, AnswerFormat, count_endings, read_answers
from mmalign.evaluation.parquet import has_pictures, read_pictures
from mmalign.evaluation.rows import read_records, read_text

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 62914560\n"


def answers_of(path: Path, *rows: Any, **options: Any) -> list[Answer]:
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_answers(path, **options)


def test_one_object_of_id_and_response(tmp_path: Path) -> None:
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps({"a": "Yes", "b": "No"}, indent=indent))
        assert read_answers(tmp_path / "a.json") == [Answer("a", "Yes"), Answer("b", "No")]


def test_parquet_without_its_pictures(tmp_path: Path) -> None:
    rows = [{"id": i, "response": "Yes", "image": {"bytes": b"png", "path": f"{i}.png"}, "raw": b"x"} for i in ("a", "b")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_records(tmp_path / "a.parquet") == [{"id": i, "response": "Yes", "image": f"{i}.png"} for i in ("a", "b")]
    assert read_answers(tmp_path / "a.parquet") == [Answer("a", "Yes"), Answer("b", "Yes")]
    assert has_pictures(tmp_path / "a.parquet")
    assert read_pictures(tmp_path / "a.parquet") == [b"png", b"png"]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"b.parquet can't be read as Parquet"):
        read_records(tmp_path / "b.parquet")


def test_replies_of_an_endpoint(tmp_path: Path) -> None:
    def completion(content: Any, reason: str, **more: Any) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "choices": [{"message": {"content": content, **more}, "finish_reason": reason}]}

    parts = [{"type": "thinking", "thinking": "no?"}, {"type": "text", "text": "Yes"}]
    got = answers_of(
        tmp_path / "a",
        completion("Yes", "stop", reasoning_content="There is no cat."),
        completion(None, "length", reasoning_content="There is no cat."),
        completion(parts, "stop"),
        completion("<think>no</think>Yes", "length"),
        order=["a", "b", "c", "d"],
    )
    assert got == [
        Answer("a", "Yes", reasoned=True, at_limit=False),
        Answer("b", "", reasoned=True, at_limit=True),
        Answer("c", "Yes", reasoned=False, at_limit=False),
        Answer("d", "Yes", reasoned=True, at_limit=True),
    ]
    assert count_endings(got) == (3, 1, 2)
    batch = {"id": "batch_1", "custom_id": "q7", "response": {"status_code": 200, "body": completion("No", "stop")}}
    assert answers_of(tmp_path / "a", batch) == [Answer("q7", "No", at_limit=False)]
    failed = completion("", "error")
    failed["choices"][0]["error"] = {"code": 502, "message": "upstream"}
    with pytest.raises(ValueError, match=r"a, row 2 is a reply of an endpoint, and its choice is an error: .*upstream.*; ask again"):
        answers_of(tmp_path / "a", completion("Yes", "stop"), failed, order=["a", "b"])


@pytest.mark.parametrize(
    ("row", "at_limit"),
    [
        ({"ended": False}, True),
        ({"ended": True}, False),
        ({"finish_reason": "length"}, True),
        ({"finish_reason": "MAX_TOKENS"}, True),
        ({"finish_reason": "stop"}, False),
        ({"stop_reason": "end_turn"}, False),
        ({}, None),
    ],
)
def test_how_an_answer_ended(tmp_path: Path, row: dict[str, Any], at_limit: bool | None) -> None:
    assert answers_of(tmp_path / "a", {"id": "a", "response": "Yes", **row}) == [Answer("a", "Yes", at_limit=at_limit)]
    assert count_endings(answers_of(tmp_path / "a", {"id": "a", "response": "Yes", **row})).at_limit == at_limit


def test_reasoning_that_the_template_opened_and_the_limit_cut(tmp_path: Path) -> None:
    """Nothing in such an answer says so, but the others of its file close what they did not open."""
    rows = [
        {"id": "a", "response": "There is no cat.</think>Yes", "ended": True},
        {"id": "b", "response": "There is no", "ended": False},
        {"id": "c", "response": "No", "ended": True},
    ]
    assert [answer.response for answer in answers_of(tmp_path / "a", *rows)] == ["Yes", "", "No"]
    assert count_endings(answers_of(tmp_path / "a", *rows)) == (2, 1, 1)
    # Without a sign that the template opens it, a long answer is only long.
    assert [answer.response for answer in answers_of(tmp_path / "a", *rows[1:])] == ["There is no", "No"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a.parquet"])
def test_git_lfs_pointers_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    read = read_text if name == "a.txt" else read_records
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer, not the file itself: run 'git lfs pull'"):
        read(tmp_path / name)


def test_null_is_refused_unless_reasoning_stands_beside_it(tmp_path: Path) -> None:
    assert answers_of(tmp_path / "a", {"id": "a", "response": None, "reasoning": "hm"}) == [Answer("a", "", reasoned=True)]
    with pytest.raises(ValueError, match="row 1: response is null"):
        answers_of(tmp_path / "a", {"id": "a", "response": None})


def test_llavas_rows_by_question_id(tmp_path: Path) -> None:
    form = AnswerFormat(text=("text",), row_id=lambda row: str(row["question_id"]))
    row = {"question_id": 7, "prompt": "Is it?", "text": "Yes", "answer_id": "x", "model_id": "m", "metadata": {}}
    assert answers_of(tmp_path / "a", row, form=form) == [Answer("7", "Yes")]

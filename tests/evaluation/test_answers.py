"""Answers: ours and other people's formats, and what is refused."""

import json
from pathlib import Path

import pytest

from mmalign.evaluation.answers import Answer, AnswerFormat, match_answers, read_answers, shared_decoding


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_lines_and_arrays_are_alike(tmp_path: Path) -> None:
    rows = [{"id": 1, "response": "a\u2028b"}, {"id": "x", "response": ""}]
    lines, array = write(tmp_path / "a.jsonl", *rows), tmp_path / "a.json"
    array.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    assert read_answers(lines) == read_answers(array) == [Answer("1", "a\u2028b"), Answer("x", "")]


def test_rows_without_ids_are_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"answer": "Yes"}, {"answer": "No"})
    form = AnswerFormat(text=("answer",))
    assert read_answers(path, form, order=["q1", "q2"]) == [Answer("q1", "Yes"), Answer("q2", "No")]
    # The original POPE script pairs what is there and drops the rest without a word.
    with pytest.raises(ValueError, match="2 answers without ids for 3 questions"):
        read_answers(path, form, order=["q1", "q2", "q3"])


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1 has keys id, text; expected id and response"):
        read_answers(write(tmp_path / "a", {"id": "a", "text": "x"}))
    with pytest.raises(ValueError, match=r"row 2 has keys response; expected id and response"):
        read_answers(write(tmp_path / "a", {"id": "a", "response": "x"}, {"response": "x"}), order=["a", "b"])
    (tmp_path / "a").write_text('{"id": "a"\n')
    with pytest.raises(ValueError, match="line 1"):
        read_answers(tmp_path / "a")
    with pytest.raises(ValueError, match="file not found"):
        read_answers(tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there are no answers in "),
        (b'{"id": "a", "response": "caf\xe9"}', "is not UTF-8 text: byte 28 is 0xe9; save it as UTF-8"),
        ('{"id": "a"}'.encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
        (b'{"id": "a", "response": "x"}\n{"id": "b", "resp', "line 2: .*; expected one JSON object a line"),
        (b'[{"id": "a", "response": "x"}, {"id"', "Expecting ':' delimiter"),
        (b"3", "line 1 is 3; expected one JSON object a line"),
        (b"[3]", "row 1 is 3; expected an object with id and response"),
        (b'{"id": "a", "response": null}', 'row 1: response is null; expected text, and "" where nothing was said'),
        (b'{"id": "a", "response": ["x"]}', 'response is .*"x".*; expected text'),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "saved").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_answers(tmp_path / "saved", order=["a"])
    assert str(tmp_path / "saved") in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    for name, text in (("lines", '{"id": "a", "response": "x"}'), ("array", '[{"id": "a", "response": "x"}]')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_answers(tmp_path / name) == [Answer("a", "x")]


def test_missing_doubled_and_foreign_ids_are_listed() -> None:
    answers = [Answer("a", "first"), Answer("a", "second"), Answer("z", "of other data")]
    with pytest.raises(ValueError, match="2 questions have no answer: b, c") as error:
        match_answers(answers, required=["a", "b", "c"])
    assert "1 ids are answered more than once: a" in str(error.value)
    assert "1 answers belong to no question: z" in str(error.value)
    assert "--allow-partial" in str(error.value)


def test_partial_answers_are_scored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    answers = [Answer("b", "2"), Answer("a", "first"), Answer("a", "second"), Answer("z", "foreign")]
    assert match_answers(answers, required=["a", "b", "c"], allow_partial=True) == {"a": "first", "b": "2"}
    assert "1 questions have no answer: c" in caplog.text
    with pytest.raises(ValueError, match="no answers to score"):
        match_answers([], required=["a"], allow_partial=True)


@pytest.mark.parametrize("allow_partial", [True, False])
def test_answers_to_another_benchmark_are_told_as_such(allow_partial: bool) -> None:
    with pytest.raises(ValueError, match=r"none of 2 answers belongs to this benchmark: their ids are such as 7, expected ids such as a"):
        match_answers([Answer("7", "Yes"), Answer("8", "No")], required=["a", "b"], allow_partial=allow_partial)


def test_long_lists_are_cut() -> None:
    with pytest.raises(ValueError, match="30 questions have no answer: .* and 10 more"):
        match_answers([Answer("a", "")], required=["a", *map(str, range(30))])


def test_strange_ids_are_listed_as_text_that_can_be_printed() -> None:
    with pytest.raises(ValueError, match=r"2 questions have no answer: x{80}\.\.\., \\ud800 and more") as error:
        match_answers([Answer("a", "")], required=["a", "x" * 30_000, "\ud800 and more"])
    str(error.value).encode()


def test_decoding_is_read_where_all_rows_agree(tmp_path: Path) -> None:
    row = {"id": "a", "response": "x", "gen": {"max_new_tokens": 16}}
    other = {**row, "gen": {"max_new_tokens": 8}}
    plain = {"id": "a", "response": "x"}
    cases = [((row, row), {"max_new_tokens": 16}), ((row, other), None), ((plain,), None)]
    for rows, expected in cases:
        assert shared_decoding(read_answers(write(tmp_path / "a", *rows))) == expected


def test_known_answers_that_nothing_requires_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    answers = [Answer("a", "1"), Answer("b", "2")]
    assert match_answers(answers, required=["a"], known={"a", "b"}) == {"a": "1"}
    assert match_answers(answers, required=[], known={"a", "b"}) == {"a": "1", "b": "2"}
    assert caplog.text == ""

"""JSON files: each value is read as the file says it, whatever else its column holds, and however far into the file it stands."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Json, List, Value

from mmalign.data.checking import keep_good_rows
from mmalign.data.datasets import load_rows
from mmalign.data.rejects import Rejects
from mmalign.data.rows import read_pair
from mmalign.errors import UserError

USER, ANSWER = {"role": "user", "content": "what is it"}, {"role": "assistant", "content": "a dog"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "what is it"}]}
PAIR = {"prompt": "what is it", "chosen": "a dog", "rejected": "a cat"}
# Texts that a reader of JSON could take for something else: VQA's answers are full of them.
ANSWERS = ["5", "-0", "007", "1e5", "true", "null", "NaN", '"a dog"', "[1, 2]", '{"dog": 1}', "[]", " 5", "2024-01-01", "12:30:00"]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    "beside",
    [PAIR, {**PAIR, "chosen": [ANSWER]}, {"prompt": [PARTS], "chosen": ANSWER, "rejected": [ANSWER]}],
    ids=["texts", "messages", "parts"],
)
@pytest.mark.parametrize("form", [lambda words: words, lambda words: [{"role": "assistant", "content": words}]], ids=["text", "message"])
def test_an_answer_is_the_text_that_it_was(form: Any, beside: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"pairs.{suffix}", [beside, *({**PAIR, "chosen": form(words)} for words in ANSWERS)])
    assert [read_pair(raw, index=0).chosen for raw in list(load_rows(path))[1:]] == ANSWERS


def test_an_answer_stays_a_text_where_another_file_has_messages(tmp_path: Path) -> None:
    write(tmp_path / "1.jsonl", [{**PAIR, "chosen": words} for words in ANSWERS])
    write(tmp_path / "2.jsonl", [{**PAIR, "chosen": [ANSWER]}])
    assert [read_pair(raw, index=0).chosen for raw in load_rows(tmp_path)] == [*ANSWERS, "a dog"]


def test_ids_stay_apart(tmp_path: Path) -> None:
    ids = ["007", 7, "7.0", 2**63 - 1, 10**30, "x"]
    rows = load_rows(write(tmp_path / "pairs.jsonl", [{**PAIR, "id": name} for name in ids]))
    assert [read_pair(raw, index=0).id for raw in rows] == [str(name) for name in ids]


FAR = 1500
"""Rows of one form before another: more than become a table at once."""
CHANGES: list[tuple[dict[str, Any], dict[str, Any], Any]] = [
    ({}, {"images": ["a.png"]}, List(Value("string"))),
    ({"images": []}, {"images": ["a.png"]}, List(Value("string"))),
    ({"images": None}, {"images": ["a.png"]}, List(Value("string"))),
    ({"images": ["a.png"]}, {"images": "a.png"}, Json()),
    ({"said": "what is it"}, {"said": [PARTS]}, Json()),
    ({"said": [USER]}, {"said": [PARTS]}, Json()),
    ({"scores": [1, 0]}, {"scores": [0.75, 0.25]}, List(Value("float64"))),
    ({"scores": [1, 0]}, {"scores": ["1", "0"]}, Json()),
    ({"label": True}, {"label": 1}, Json()),
    ({"id": 7}, {"id": "007"}, Json()),
    ({"meta": {"a": 1}}, {"meta": {}}, Json()),
]


@pytest.mark.parametrize(("first", "last", "type_"), CHANGES)
def test_a_form_may_change_anywhere_in_a_file(first: dict[str, Any], last: dict[str, Any], type_: Any, tmp_path: Path) -> None:
    ((name, value),) = last.items()
    rows = load_rows(write(tmp_path / "rows.jsonl", [{"n": 1, **first}] * FAR + [last]))
    assert len(rows) == FAR + 1
    assert rows[FAR - 1][name] == first.get(name)
    assert rows[FAR][name] == value
    assert rows.features[name] == type_


def test_rows_over_several_lines_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    for text in (
        json.dumps([PAIR, PAIR], indent=1),
        "\n\n".join(json.dumps(PAIR, indent=1) for _ in range(2)),
        f"\r\n{json.dumps(PAIR)}\r\n\n{json.dumps(PAIR)}",
        f"\ufeff{json.dumps([PAIR, PAIR])}",
    ):
        path.write_text(text)
        assert list(load_rows(path)) == [PAIR, PAIR]


@pytest.mark.parametrize("beside", [PAIR, {**PAIR, "chosen": [ANSWER]}], ids=["texts", "messages"])
def test_half_of_a_surrogate_pair_costs_one_row(beside: dict[str, Any], tmp_path: Path) -> None:
    rows = load_rows(write(tmp_path / "pairs.jsonl", [beside, {**PAIR, "chosen": "a \ud83d"}, {**PAIR, "chosen": "a \ud83d\udc15"}]))
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.5)
    good = keep_good_rows(rows, lambda raw, index: read_pair(raw, index=index), rejects=rejects)
    assert [read_pair(raw, index=0).chosen for raw in good] == ["a dog", "a \N{DOG}"]
    (line,) = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert "the row holds text that is no UTF-8" in json.loads(line)["reason"]


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [PAIR])
    assert load_rows(path)[0]["chosen"] == "a dog"
    write(path, [{**PAIR, "chosen": "an owl"}])
    assert load_rows(path)[0]["chosen"] == "an owl"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'{json.dumps(PAIR)}\n\n{{"prompt": "what', "jsonl: line 3 is no JSON: Unterminated string .*column 12"),
        (json.dumps([PAIR, PAIR], indent=1)[:-20], "jsonl: line 10 is no JSON"),
        ('{"prompt": "a", "prompt": "b"}', "an object has the key 'prompt' twice"),
        (f'{json.dumps(PAIR)}\n"a dog"', "row 1 is a str, expected an object with the columns of a row"),
        (json.dumps([[PAIR], PAIR]), "row 0 is a list, expected an object"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
    ],
)
def test_a_file_that_is_no_json(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(UserError, match=reason):
        load_rows(tmp_path / "pairs.jsonl")

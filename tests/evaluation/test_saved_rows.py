"""Rows that others saved: the model's words are told from the question and its label, wherever they stand."""

import json
import sys
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from openpyxl import Workbook

from mmalign.errors import UserError
from mmalign.evaluation.answers import match_answers, read_answers
from mmalign.evaluation.mme import load_mme
from mmalign.evaluation.pope import load_pope
from mmalign.evaluation.rows import read_records

QUESTIONS = ("Is there a dog in the image?", "Is there a cat in the image?")
LABELS, SAID = ("yes", "no"), ("No", "No")
MEANT = {"random/1": "No", "random/2": "No"}


def pope(folder: Path) -> Path:
    rows = [{"question_id": i, "image": "a.jpg", "text": q, "label": a} for i, (q, a) in enumerate(zip(QUESTIONS, LABELS, strict=True), 1)]
    folder.mkdir(exist_ok=True)
    (folder / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read(path: Path, folder: Path) -> dict[str, str]:
    benchmark = load_pope(folder)
    answers = read_answers(path, benchmark.form, order=benchmark.required(), texts=benchmark.texts(), parts=benchmark.parts())
    return match_answers(answers, required=benchmark.required(), known=benchmark.known())


def rows_of(fields: str) -> list[dict[str, Any]]:
    """Rows with these fields: index and question_id count, question and text ask, answer and label are the label."""
    rows = []
    for number, (question, label, said) in enumerate(zip(QUESTIONS, LABELS, SAID, strict=True), start=1):
        known = {"index": number, "question_id": number, "question": question, "text": question, "prompt": question}
        known |= {"answer": label, "label": label, "category": "random", "image": "a.jpg", "image_source": "a"}
        rows.append({name: known.get(name, said) for name in fields.split()})
    return rows


@pytest.mark.parametrize(
    "fields",
    [
        "index question answer category prediction",
        "question_id question answer category image_source prediction",
        "question_id question answer image_source model_output",
        "question_id question answer pred",
        "prompt label predict",
        "question_id image text label prediction",
        "question_id image text label outputs",
    ],
)
def test_a_label_beside_the_response_is_not_the_response(tmp_path: Path, fields: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(fields)))
    assert read(path, pope(tmp_path / "data")) == MEANT


@pytest.mark.parametrize(
    "row",
    [
        # POPE's own rows answered, LLaVA's with the label beside them, the hub's rows with the question twice.
        {"text": QUESTIONS[0], "label": "yes", "answer": "No"},
        {"text": QUESTIONS[0], "answer": "No"},
        {"prompt": QUESTIONS[0], "text": "No", "answer": "yes"},
        {"prompt": f"{QUESTIONS[0]} In one word.", "text": QUESTIONS[0], "answer": "No"},
        {"prompt": QUESTIONS[0], "text": "No", "label": "yes"},
        {"text": "No", "label": "yes"},
    ],
)
def test_answer_and_text_are_told_apart(tmp_path: Path, row: dict[str, str]) -> None:
    rows = [{"question_id": 1, **row}, {"question_id": 2, "response": "No"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "a.jsonl", pope(tmp_path / "data")) == MEANT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("question_id image text label", "row 1 is a question: its text is the benchmark's own"),
        ("question_id question answer category image_source", "row 1 is a question: its answer is the benchmark's own"),
        ("question_id question answer category said", "row 1 is a question: its answer is the benchmark's own"),
    ],
)
def test_questions_are_no_answers(tmp_path: Path, fields: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(fields)))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.jsonl", pope(tmp_path / "data"))


def test_what_can_not_be_told_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = pope(tmp_path / "data")
    (tmp_path / "a.jsonl").write_text(json.dumps({"question_id": 1, "text": "Yes", "answer": "yes"}))
    with pytest.raises(ValueError, match="row 1 has answer and text, and either may be what the model said; call that field response"):
        read(tmp_path / "a.jsonl", folder)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of("question_id question answer said")))
    assert read(tmp_path / "a.jsonl", folder) == {"random/1": "yes", "random/2": "no"}
    assert "answer is read as what the model said, and said is not read; call it response if it is" in caplog.text


def test_a_message_names_some_keys_of_many(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({str(i): {"said": "Yes"} for i in range(9000)}))
    with pytest.raises(
        ValueError, match=r"row 1 has keys 0, 1, .*, 11 and 8988 more; expected id and response or prediction or answer or text$"
    ):
        read(tmp_path / "a.json", pope(tmp_path / "data"))


def test_ids_of_tables(tmp_path: Path) -> None:
    """A missing value makes a column of whole numbers one of floats, and a column may be there and empty."""
    folder = pope(tmp_path / "data")
    for ids in ([1.0, 2.0], [None, None], ["1", "2"]):
        pyarrow.parquet.write_table(pyarrow.table({"id": ids, "response": list(SAID)}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet", folder) == MEANT


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t"), (".CSV", ","), (".TSV", "\t")])
def test_tables_of_text(tmp_path: Path, suffix: str, separator: str) -> None:
    path = tmp_path / f"a{suffix}"
    lines = [
        ["index", "question", "answer", "prediction"],
        ["2", QUESTIONS[1], "No", '"No, ""not""\tone,\nsurely"'],
        ["1", QUESTIONS[0], "Yes", ""],
    ]
    path.write_text("\n".join(separator.join(line) for line in lines) + "\n")
    assert read(path, pope(tmp_path / "data")) == {"random/1": "", "random/2": 'No, "not"\tone,\nsurely'}


def test_workbooks(tmp_path: Path) -> None:
    """As pandas writes them for VLMEvalKit; a column without a name, a row without a prediction, and an answer that looks like a date."""
    path, book = tmp_path / "a.xlsx", Workbook()
    book.active.append(["index", "answer", None, "prediction"])
    book.active.append([1, "Yes", "x", "No dog."])
    book.active.append([2, "Yes"])
    book.active.append([])
    book.create_sheet().append(["other"])
    book.save(path)
    assert read_records(path) == [
        {"index": 1, "answer": "Yes", "prediction": "No dog."},
        {"index": 2, "answer": "Yes", "prediction": ""},
    ]
    assert read(path, pope(tmp_path / "data")) == {"random/1": "No dog.", "random/2": ""}
    book.active["D3"] = date(2024, 1, 31)
    book.save(path)
    assert read_records(path)[1]["prediction"].startswith("2024-01-31")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a.xlsx can't be read as a workbook: "):
        read_records(path)
    empty = Workbook()
    empty.save(path)
    with pytest.raises(ValueError, match="the first row of .* names no columns"):
        read_records(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "<worksheet>")
    with pytest.raises(ValueError, match="can't be read as a workbook: "):
        read_records(path)


def test_a_workbook_without_its_reader_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.xlsx is a workbook, which needs openpyxl: pip install 'mmalign\[xlsx\]'"):
        read_records(tmp_path / "a.xlsx")


@pytest.mark.parametrize(("start", "kind"), [(b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04\xff", "a zip archive or a workbook")])
def test_packed_files_are_named(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(start + b"\x00\xff")
    with pytest.raises(ValueError, match=f"a.jsonl is no text but {kind}: unpack it"):
        read_records(tmp_path / "a.jsonl")


def test_samples_of_lmms_eval(tmp_path: Path) -> None:
    """They count from 0 over the task, hold the whole request, and may come in any order; older ones hold the document."""
    folder, path = pope(tmp_path / "data"), tmp_path / "samples_pope.jsonl"
    ask = "\nAnswer the question using a single word or phrase."
    logged = [
        {"doc_id": i, "input": f"{q}{ask}", "target": a, "filtered_resps": [s], "pope_accuracy": {"prediction": s.lower()}}
        for i, (q, a, s) in enumerate(zip((*QUESTIONS, "Is there a cup in the image?"), (*LABELS, "no"), (*SAID, "Yes"), strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in logged[::-1]))
    assert read(path, folder) == MEANT
    docs = [
        {
            "doc_id": i,
            "doc": {"id": "7", "question_id": str(i + 1), "category": "random", "question": q, "answer": a},
            "filtered_resps": [[s]],
        }
        for i, (q, a, s) in enumerate(zip(QUESTIONS, LABELS, SAID, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in docs))
    assert read(path, folder) == MEANT


def test_samples_of_lmms_eval_of_all_mme(tmp_path: Path) -> None:
    """The task asks about 14 categories, of which four are scored: each is found as the run of its questions."""
    named = [("color", "c.jpg", "red"), ("artwork", "a.jpg", "old"), ("count", "n.jpg", "three")]
    rows = [
        {
            "question_id": f"{category}/{image}",
            "category": category,
            "question": f"Is it {said}{again}? Please answer yes or no.",
            "answer": a,
        }
        for category, image, said in named
        for again, a in (("", "Yes"), (" not", "No"))
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mme.json").write_text(json.dumps(rows))
    logged = [{"doc_id": i, "input": row["question"], "filtered_resps": [f"{i}"]} for i, row in enumerate(rows)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    mme = load_mme(tmp_path / "data")
    answers = read_answers(tmp_path / "samples.jsonl", mme.form, order=mme.required(), texts=mme.texts(), parts=mme.parts())
    expected = {"color/c.jpg/1": "0", "color/c.jpg/2": "1", "count/n.jpg/1": "4", "count/n.jpg/2": "5"}
    assert match_answers(answers, required=mme.required()) == expected


@pytest.mark.parametrize(("field", "warned"), [("qid", True), ("question", False), ("note", False)])
def test_rows_without_an_id_that_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, warned: bool) -> None:
    values = {"qid": (7, 8), "question": QUESTIONS, "note": ("same", "same")}[field]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({field: value, "response": said}) + "\n" for value, said in zip(values, SAID, strict=True)))
    assert read(path, pope(tmp_path / "pope")) == MEANT
    told = "rows have no id and are taken in the questions' order; qid is not read, call it id if it is one"
    assert (told in caplog.text) is warned

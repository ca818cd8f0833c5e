"""The comparison: what is best, what is left empty, and the tables as a program reads them."""

import csv
import io

import pytest

from mmalign.reports.comparison import EvalRun, Range, build_comparison, csv_comparison, markdown_comparison, terminal_comparison

A = EvalRun(
    name="A",
    metrics={"pope/random/f1": 0.5, "pope/f1": 0.75, "pope/yes_ratio": 0.45, "odd/thing": 123.456, "pope/always_no/f1": 0.0},
    num_answers={"pope": 9000, "odd": 3},
    intervals={"pope/f1": Range(0.7, 0.8)},
)
B = EvalRun(
    name="B|b",
    metrics={"pope/random/f1": 0.5001, "pope/f1": 0.78, "pope/yes_ratio": 0.56, "chair/sentence": 0.2, "pope/always_no/f1": 0.0},
    num_answers={"pope": 9000, "chair": 500},
    intervals={"pope/f1": Range(0.73, 0.83)},
    differences={"A": {"pope/f1": Range(0.01, 0.05), "pope/yes_ratio": Range(-0.1, 0.2)}},
)


def test_rows_by_hand() -> None:
    groups = build_comparison([A, B])
    assert [(group.benchmark, group.num_answers) for group in groups] == [("pope", (9000, 9000)), ("chair", (0, 500)), ("odd", (3, 0))]
    rows = {row.key: row for group in groups for row in group.rows}
    assert list(rows)[:3] == ["pope/f1", "pope/yes_ratio", "pope/random/f1"]
    assert [(c.text, c.interval, c.best, c.differs) for c in rows["pope/f1"].cells] == [
        ("75.0", "70.0 to 80.0", False, False),
        ("78.0", "73.0 to 83.0", True, True),
    ]
    assert [c.best for c in rows["pope/yes_ratio"].cells] == [True, False], "45 is nearer to 50 than 56"
    assert not any(c.differs for c in rows["pope/yes_ratio"].cells)
    assert [c.best for c in rows["pope/random/f1"].cells] == [False, False], "equal as shown"
    assert (rows["pope/random/f1"].label, rows["pope/random/f1"].is_whole) == ("Random: F1 ↑", False)
    assert [(c.text, c.best) for c in rows["chair/sentence"].cells] == [("-", False), ("20.0", False)]
    assert (rows["odd/thing"].label, rows["odd/thing"].cells[0].text) == ("Thing", "123.5")
    assert groups[0].baselines == ("Always no: F1 0.0",)


def test_units() -> None:
    metrics = {"amber/f1": 74.7, "mmhal/score": 2.36, "mmhal/hallucination_rate": 0.51, "mme/existence/accuracy_plus": 90.0}
    rows = {row.key: row for group in build_comparison([EvalRun(name="A", metrics=metrics, num_answers={})]) for row in group.rows}
    assert {key: row.cells[0].text for key, row in rows.items()} == {
        "amber/f1": "74.7",
        "mmhal/score": "2.36",
        "mmhal/hallucination_rate": "51.0",
        "mme/existence/accuracy_plus": "90.0",
    }
    assert rows["mme/existence/accuracy_plus"].info.label == "Existence: Both questions of an image right"


def test_markdown() -> None:
    lines = markdown_comparison(build_comparison([A, B]), ["A", "B|b"]).splitlines()
    assert lines[0] == "|  | A | B\\|b |"
    assert "| F1 ↑ | 75.0 (70.0 to 80.0) | **78.0** † (73.0 to 83.0) |" in lines
    assert "| **CHAIR: describing the image**, answers | - | 500 |" in lines
    assert all(line.replace("\\|", "").count("|") == 4 for line in lines)


def test_terminal() -> None:
    assert terminal_comparison(build_comparison([A, B]), ["A", "B|b"]).splitlines() == [
        "                                        A     B|b",
        "POPE: is there a ...?, 9,000 answers per model",
        "  F1 ↑                               75.0    78.0*†",
        "  Share of yes → 50                  45.0*   56.0",
        "CHAIR: describing the image, 500 answers per model",
        "  Captions with an absent object ↓      -    20.0",
        "odd, 3 answers per model",
        "  Thing                             123.5       -",
        "* best of its row; ↓ lower is better, ↑ higher, → 50 nearer to half",
        "† its difference from A has a 95% interval without zero",
    ]


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_comparison(build_comparison([A, B]), [A, B]))))
    by_key = {row["metric"]: row for row in rows}
    assert by_key["pope/f1"] == {
        "metric": "pope/f1", "A": "0.75", "A low": "0.7", "A high": "0.8", "B|b": "0.78", "B|b low": "0.73", "B|b high": "0.83",
    }  # fmt: skip
    assert by_key["odd/thing"]["B|b"] == ""
    assert "pope/always_no/f1" not in by_key


@pytest.mark.parametrize("runs", [[], [A, A]])
def test_models_that_can_not_be_told_apart(runs: list[EvalRun]) -> None:
    with pytest.raises(ValueError, match="expected one or more with different names"):
        build_comparison(runs)

"""The table: what is shown, what is best, and what is refused."""

import dataclasses

import pytest

from mmalign.reports.results_table import ModelRun, build_table, text_table
from tests.reports.example_runs import build_metrics, build_run, build_runs


def best_of(models: list[ModelRun], label: str) -> list[bool]:
    rows = [row for group in build_table(models) for row in group.rows if row.label == label]
    assert len(rows) == 1
    return [cell.best for cell in rows[0].cells]


def test_direction_of_better() -> None:
    models = [
        build_run("A", sentence=0.5, recall=0.9, f1=0.7, yes_ratio=0.45),
        build_run("B", sentence=0.2, recall=0.8, f1=0.8, yes_ratio=0.52),
        build_run("C", sentence=0.3, recall=0.7, f1=0.6, yes_ratio=0.6),
    ]
    assert best_of(models, "Captions with an absent object") == [False, True, False]
    assert best_of(models, "Coverage: present objects named") == [True, False, False]
    assert best_of(models, "Popular: F1") == [False, True, False]
    assert best_of(models, "Random: share of yes") == [False, True, False]


def test_ties_at_the_shown_precision_are_all_best() -> None:
    models = build_runs({"A": 0.5, "B": 0.25, "C": 0.2502})
    assert best_of(models, "Captions with an absent object") == [False, True, True]


def test_shares_of_yes_on_either_side_of_half_tie() -> None:
    models = [build_run("A", sentence=0.5, yes_ratio=0.483), build_run("B", sentence=0.5, yes_ratio=0.517)]
    models.append(build_run("C", sentence=0.5, yes_ratio=0.6))
    assert best_of(models, "Random: share of yes") == [True, True, False]


def test_nothing_is_best_where_all_are_equal() -> None:
    assert best_of(build_runs({"A": 0.5, "B": 0.5}), "Captions with an absent object") == [False, False]


def test_terminal_table() -> None:
    lines = text_table(build_runs({"SFT": 0.66, "DPO": 0.25, "DA-DPO": 0.21})).splitlines()
    assert lines[0].split() == ["%", "SFT", "DPO", "DA-DPO"]
    assert lines[2] == "Describing the image (CHAIR), 300 answers a model"
    assert lines[3].split() == ["Captions", "with", "an", "absent", "object", "↓", "66.0", "25.0", "21.0*"]
    assert lines[3].index("66.0") + 4 == lines[0].index("SFT") + 3, "a name ends where its digits end"
    assert len(lines) == 2 + 1 + 3 + 1 + 10 + 1
    assert max(map(len, lines)) <= 100


def test_markdown_table() -> None:
    lines = text_table(build_runs({"S|T": 0.66, "DPO": 0.25}), markdown=True).splitlines()
    assert lines[:2] == ["| % | S\\|T | DPO |", "| --- | ---: | ---: |"]
    assert "| Captions with an absent object ↓ | 66.0 | **25.0** |" in lines
    assert all(line.replace("\\|", "").count("|") == 4 for line in lines)


def test_optional_metric_is_shown_where_models_have_it() -> None:
    plain = build_runs({"A": 0.5, "B": 0.25})
    assert [group.title for group in build_table(plain)] == ["Describing the image (CHAIR)", "Is there a ...? (POPE)"]
    models = [
        dataclasses.replace(run, metrics={**run.metrics, "general/accuracy": 0.4}, num_answers={**run.num_answers, "general": 50})
        for run in plain
    ]
    group = build_table(models)[-1]
    assert (group.title, group.num_answers, group.rows[0].cells[0].text) == ("Other questions", (50, 50), "40.0")
    with pytest.raises(ValueError, match="B has no metric general/accuracy"):
        build_table([models[0], plain[1]])


def test_different_numbers_of_answers_are_all_named() -> None:
    models = [build_run("A", sentence=0.5, num_chair=300), build_run("B", sentence=0.2, num_chair=1200)]
    assert "Describing the image (CHAIR), 300 / 1,200 answers a model" in text_table(models)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"pope/f1": 0.5}}, r"B has no metric chair/sentence; it has pope/f1"),
        ({"metrics": build_metrics(sentence=25.0)}, r"B: chair/sentence is 25.0; expected a share between 0 and 1"),
        ({"metrics": build_metrics(sentence=float("nan"))}, r"B: chair/sentence is nan; expected a share between 0 and 1"),
        ({"num_answers": {"pope": 3}}, r"B has 0 answers on chair; expected the number that its metrics come from"),
        ({"name": "A"}, r"the models are \['A', 'A'\]; expected two or more with different names"),
    ],
)
def test_bad_results_are_refused(change: dict[str, object], message: str) -> None:
    first, second = build_runs({"A": 0.5, "B": 0.25})
    with pytest.raises(ValueError, match=message):
        build_table([first, dataclasses.replace(second, **change)])

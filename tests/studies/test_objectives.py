"""The objectives study: the same budget for all, cells of their own, and from the start to the page."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mmalign.losses.objectives import PAIR_OBJECTIVES
from scripts.studies.objectives import OBJECTIVES, best_of, list_cells, list_search, read_search
from scripts.studies.objectives_report import object_f1, write_report

REPOSITORY = Path(__file__).parents[2]


def test_every_objective_is_in_it_and_its_words_can_be_read() -> None:
    assert {objective.name for objective in OBJECTIVES} == set(PAIR_OBJECTIVES.names())
    for objective in OBJECTIVES:
        for value in objective.values:
            assert PAIR_OBJECTIVES.parse(objective.words(value)).name == objective.name


@pytest.mark.parametrize("quick", [True, False])
def test_all_search_alike_and_no_two_runs_share_a_file(tmp_path: Path, quick: bool) -> None:
    search, cells = list(list_search(quick=quick)), list(list_cells(quick=quick))
    assert len(set(Counter(cell.objective.name for cell in search).values())) == 1
    paths = [cell.path(tmp_path) for cell in [*search, *cells]]
    assert len(set(paths)) == len(paths)
    assert {cell.seed for cell in search}.isdisjoint(cell.seed for cell in cells)


def test_object_f1_by_hand() -> None:
    """Precision 80, coverage 40: 2 * 80 * 40 / 120."""
    assert object_f1({"CHAIR_i": 20.0, "coverage": 40.0}) == pytest.approx(53.3333333)
    assert object_f1({"CHAIR_i": 100.0, "coverage": 0.0}) == 0.0


def test_the_best_of_the_search_and_the_page(tmp_path: Path) -> None:
    dpo = OBJECTIVES[0]
    with pytest.raises(ValueError, match="dpo has no finished run"):
        best_of(dpo, tmp_path)
    for cell in list_search(quick=False):
        if cell.objective == dpo:
            cell.path(tmp_path).parent.mkdir(parents=True, exist_ok=True)
            cell.path(tmp_path).write_text(json.dumps({"CHAIR_i": 20.0 - 10 * (cell.value == "1"), "coverage": 80.0}))
    assert best_of(dpo, tmp_path) == ("1", "1e-4")
    metrics = {"CHAIR_i": 20.0, "hallucinated": 30.0, "coverage": 80.0, "POPE F1": 90.0, "words": 9.0, "KL": 2.0, "seconds a step": 0.5}
    for cell in list_cells(quick=True):
        if cell.objective.name in ("dpo", "ipo"):
            better = {"CHAIR_i": 10.0, "seconds a step": 1.0} if cell.objective.name == "ipo" else {}
            cell.path(tmp_path).parent.mkdir(parents=True, exist_ok=True)
            cell.path(tmp_path).write_text(json.dumps(metrics | better))
    (tmp_path / "cells" / "sft.json").write_text(json.dumps(metrics))
    searches = [("dpo", "beta", read_search(dpo, tmp_path)), ("ipo", "beta", read_search(OBJECTIVES[2], tmp_path))]
    page = write_report(tmp_path, tmp_path, conditions=["easy-skewed, clean"], searches=searches, steps=3, batch_size=16).read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert rows == ["objective", "SFT (the start)", "ipo", "dpo", "objective", "dpo"]
    assert "| 2.00 |" in page
    assert page.endswith("| dpo | beta | 0.1: 80.0, 80.0 | 0.3: 80.0, 80.0 | 1: **84.7**, 84.7 |\n"), "ipo was not searched"
    assert (tmp_path / "objectives_tradeoff.png").is_file()


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.objectives", "--smoke", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "objectives.md").read_text()
    assert "## Easy-skewed, 20% flipped pairs" in page
    cell = json.loads((tmp_path / "cells" / "easy-skewed-clean" / "1" / "simpo.json").read_text())
    assert cell["KL"] >= 0

"""The objectives study: the same budget for all, cells of their own, and from the start to the page."""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from scripts.studies.objectives_grid import GROUPS, LISTS, PAIRS, Cell, best_of, list_cells, list_search, list_searches
from scripts.studies.objectives_page import write_page
from scripts.studies.world import object_f1

REPOSITORY = Path(__file__).parents[2]


def test_the_words_of_each_objective_can_be_read() -> None:
    for objective in (objective for group in GROUPS for objective in group.grid):
        registry = LIST_OBJECTIVES if objective.method == "listwise" else PAIR_OBJECTIVES
        for value in objective.values:
            assert registry.parse(objective.words(value)).name == objective.name


@pytest.mark.parametrize("quick", [True, False])
def test_all_search_alike_and_no_two_runs_share_a_file(tmp_path: Path, quick: bool) -> None:
    search, cells = list_searches(quick=quick), list_cells(quick=quick)
    assert len(set(Counter((cell.data, cell.objective.name) for cell in search).values())) == 1
    assert {(cell.data.lists, cell.objective) for cell in search} == {(cell.data.lists, cell.objective) for cell in cells}
    paths = [cell.path(tmp_path) for cell in [*search, *cells]]
    assert len(set(paths)) == len(paths)
    assert {cell.seed for cell in search}.isdisjoint(cell.seed for cell in cells)


def test_object_f1_by_hand() -> None:
    """Precision 80, coverage 40: 2 * 80 * 40 / 120."""
    assert object_f1({"CHAIR_i": 20.0, "coverage": 40.0}) == pytest.approx(53.3333333)
    assert object_f1({"CHAIR_i": 100.0, "coverage": 0.0}) == 0.0


def test_the_best_of_the_search_and_the_page(tmp_path: Path) -> None:
    pairs, lists = (Cell(group.grid[0], 1, group.data[0]) for group in (PAIRS, LISTS))
    with pytest.raises(ValueError, match="dpo has no finished run"):
        best_of(pairs, tmp_path)
    for cell in list_search(PAIRS, pairs.objective):
        write(cell.path(tmp_path), {"CHAIR_i": 20.0 - 10 * (cell.value == "1"), "coverage": 80.0})
    assert best_of(pairs, tmp_path) == ("1", "1e-4")
    with pytest.raises(ValueError, match="dpo has no finished run"):
        best_of(lists, tmp_path)
    assert lists.data.file(3, tmp_path) == tmp_path / "lists" / "sampled-lists-clean-3" / "ends" / "cached.parquet"
    metrics = {
        "CHAIR_i": 20.0,
        "hallucinated": 30.0,
        "coverage": 80.0,
        "POPE F1": 90.0,
        "yes": 50.0,
        "words": 9.0,
        "KL": 2.0,
        "seconds a step": 0.5,
    }
    for cell in list_cells(quick=True):
        if cell.objective.name in ("dpo", "ipo"):
            better = {"CHAIR_i": 10.0, "seconds a step": 1.0} if cell.objective.name == "ipo" else {}
            write(cell.path(tmp_path), metrics | better)
    write(tmp_path / "cells" / "sft.json", metrics)
    options = argparse.Namespace(out=tmp_path, report=tmp_path, quick=True, smoke=False)
    page = write_page(options).read_text()
    assert "### Easy-skewed, clean pairs" in page
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    compared = ["objective", "SFT (the start)", "ipo", "dpo"]
    assert rows == [*compared * 3, "objective", "dpo"], "two data sets and their overview"
    assert "| ipo | 84.7 / 90.0 | 84.7 / 90.0 |" in page
    assert "| 2.00 |" in page
    assert page.endswith("| dpo | beta | 0.1: 80.0, 80.0 | 0.3: 80.0, 80.0 | 1: **84.7**, 84.7 |\n"), "ipo was not searched"
    assert (tmp_path / "objectives_overview.png").is_file()


def write(path: Path, values: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.objectives", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "objectives.md").read_text()
    assert "### Easy-skewed, 20% flipped pairs" in page
    assert "### Sampled lists, 20% reversed" in page
    for cell in ("easy-skewed-clean/1/simpo.json", "sampled-lists-clean/1/plackett_luce.json"):
        assert json.loads((tmp_path / "cells" / cell).read_text())["KL"] >= 0

"""The study of items: rows and ranking by hand, the runs, and from the start to the page."""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.data.rows import read_chat, read_items, read_pair
from scripts.studies.items import ARMS, SEARCH_SEED, SEEDS, Cell, list_searches, read_search, start_folder
from scripts.studies.items_page import write_page
from scripts.studies.items_rows import as_chat, as_items, as_pair, find_spans, list_rows, ranking

REPOSITORY = Path(__file__).parents[2]


def test_spans_stand_behind_each_other() -> None:
    """The second phrase stands inside the first one too."""
    assert find_spans("There is a red star, a star and a dog.", ["a red star", "a star", "a dog"]) == [[9, 19], [21, 27], [32, 37]]


def test_ranking_by_hand() -> None:
    """Relevance 1, 0, 1: the absent item last; then in the middle, where the gain is 1 + 1/2 of 1 + 1/log2 3."""
    assert ranking([[-1.0, -3.0, -2.0]], [[1, 0, 1]]) == {"NDCG": 100, "absent last": 100, "above": 100}
    got = ranking([[-1.0, -2.0, -3.0]], [[1, 0, 1]])
    assert got["NDCG"] == pytest.approx(100 * 1.5 / (1 + 1 / math.log2(3)))
    assert (got["absent last"], got["above"]) == (0, 50)


def test_rows_of_each_form() -> None:
    rows = list_rows(5, 8)
    assert len({row["id"] for row in rows}) == 8
    for row in rows:
        read = read_items(as_items(row), index=0)
        phrases = [read.response[start:end] for start, end in read.items]
        (absent,) = [phrase for phrase, grade in zip(phrases, read.relevance, strict=True) if grade == 0]
        pair, chat = read_pair(as_pair(row), index=0), read_chat(as_chat(row), index=0)
        assert pair.rejected == read.response
        assert absent not in pair.chosen
        assert all(phrase in pair.chosen for phrase in phrases if phrase != absent)
        assert chat.messages[-1]["content"] == [{"type": "text", "text": pair.chosen}]
    assert list_rows(5, 3) == rows[:3]


def test_every_run_has_a_file_of_its_own(tmp_path: Path) -> None:
    cells = [*list_searches(), *(Cell(arm, seed) for seed in SEEDS for arm in ARMS)]
    assert len({cell.path(tmp_path) for cell in cells}) == len(cells) == 10 + 9
    assert len(list_searches(smoke=True)) == len(ARMS)
    assert [cell.strength for cell in list_searches(quick=True)] == ["1", "1", "0.3", "0.3", "0", "0"]
    assert start_folder(SEARCH_SEED, tmp_path) == start_folder(SEEDS[0], tmp_path)


def write(path: Path, values: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_the_page(tmp_path: Path) -> None:
    said = {"CHAIR_i": 20.0, "coverage": 80.0, "hallucinated": 30.0, "POPE F1": 90.0, "absent last": 50.0, "above": 70.0}
    for seed in SEEDS[:2]:
        for name, ndcg in (("sft", 80.0), ("irpo-items", 90.0 + seed), ("sft-true", 85.0)):
            write(tmp_path / "cells" / str(seed) / f"{name}.json", said | {"NDCG": ndcg})
    write(Cell(ARMS[0], SEARCH_SEED, "1", "1e-4").path(tmp_path), said)
    searches = {(ARMS[0].name, "beta"): read_search(ARMS[0], tmp_path)}
    assert searches[ARMS[0].name, "beta"] == {("1", "1e-4"): pytest.approx(80)}
    page = write_page(argparse.Namespace(out=tmp_path, report=tmp_path), searches).read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    rows = [line for line in lines if line[0] == "IRPO, items of one answer"]
    assert [row[-3] for row in rows] == ["91.5 ± 6.4", "+11.5 ± 6.4 (p = 0.028)", "+6.5 ± 6.4 (p = 0.049)"]
    assert "DPO, whole answers" not in page


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.items", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "items.md").read_text()
    assert all(page.count(f"\n| {name} |") >= 1 for name in ("IRPO, items of one answer", "DPO, whole answers", "SFT on the true answers"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    cell = Cell(ARMS[0], SEEDS[0]).path(tmp_path)
    cell.unlink()
    subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=900, check=True)
    assert {path for path in before if path.stat().st_mtime_ns != before[path] and not path.name.endswith(".log.json")} == {cell}

"""The DA-DPO study runs from the start to the page, and goes on where it was stopped."""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from datasets import Dataset

from scripts.studies.da_dpo import CONDITIONS, CORE, DPO, MAIN, Cell, list_tiers

REPOSITORY = Path(__file__).parents[2]


def test_cells_are_listed_once_and_have_files_of_their_own(tmp_path: Path) -> None:
    for quick in (True, False):
        paths = [cell.path(tmp_path) for cell in chain(*list_tiers(quick=quick))]
        assert len(set(paths)) == len(paths)
    assert {cell.seed for cell in chain(*list_tiers(quick=True))} == {1, 2}
    full = list(chain(*list_tiers(quick=False)))
    assert {cell.seed for cell in full} == {1, 2, 3, 4, 5}
    assert {(condition, arm) for condition in CONDITIONS for arm in CORE} <= {(cell.condition, cell.arm) for cell in full}
    assert Cell(MAIN, DPO, 3).path(tmp_path) == tmp_path / "cells" / "80-easy" / "3" / "dpo.json"


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.da_dpo", "--smoke", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "da_dpo.md").read_text()
    assert page.count("| DA-DPO paper |") == 2 + 1 + 2 * 2, "main, its differences, further metrics, and two more data sets"
    assert (tmp_path / "da_dpo_tradeoff.png").read_bytes().startswith(b"\x89PNG")
    grades = Dataset.from_parquet(str(next((tmp_path / "pairs").glob("80-easy-1/difficulty/oracle-*.parquet"))))
    assert grades["difficulty"] == grades["truth_difficulty"], "no label is flipped here"
    cell = tmp_path / "cells" / "80-easy" / "1" / "dpo.json"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    cell.unlink()
    subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=600, check=True)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    assert set(after) == set(before)
    assert {path for path in before if after[path] != before[path]} == {cell, cell.with_suffix(".log.json")}

"""The DA-DPO study runs from the start to the page, and resumes where it was stopped."""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from datasets import Dataset

from scripts.studies.da_dpo import CONDITIONS, CORE, DPO, MAIN, Arm, Cell, Source, list_tiers, write_difficulty

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


def test_difficulty_from_each_source(tmp_path: Path) -> None:
    rows = {
        "difficulty": [0.1, 0.2, 0.3, 0.4],
        "truth_difficulty": [0.0, 1.0, 0.0, 1.0],
        "truth_flipped": [False, False, True, False],
        "easiness_contrastive": [0.9, 0.5, 0.25, 0.0],
    }
    scored = tmp_path / "scored.parquet"
    Dataset.from_dict(rows).to_parquet(str(scored))

    def difficulty(source: Source) -> list[float]:
        path = write_difficulty(Cell(MAIN, Arm("arm", source=source), 1), scored)
        return list(Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))["difficulty"])

    assert difficulty("estimated") == rows["difficulty"]
    assert difficulty("oracle") == [0.0, 1.0, 1.0, 1.0], "a flipped label is as hard as can be"
    assert sorted(difficulty("shuffled")) == rows["difficulty"]
    assert difficulty("contrastive") == [1 - value for value in rows["easiness_contrastive"]]


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.da_dpo", "--smoke", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "da_dpo.md").read_text()
    assert page.count("| DA-DPO paper |") == 2 + 1 + 2 * 2, "main, its differences, further metrics, and two more data sets"
    assert (tmp_path / "da_dpo_tradeoff.png").read_bytes().startswith(b"\x89PNG")
    cell = tmp_path / "cells" / "80-easy" / "1" / "dpo.json"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    cell.unlink()
    subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=600, check=True)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    assert set(after) == set(before)
    assert {path for path in before if after[path] != before[path]} == {cell, cell.with_suffix(".log.json")}

"""The study of search pairs: the same budget for all, tokens by hand, and from the start to the page."""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from scripts.studies.search_pairs import mean_tokens, read_samples, read_search
from scripts.studies.search_pairs_grid import ARMS, OTHERS, Cell, best_of, list_cells, list_searches
from scripts.studies.search_pairs_page import write_page
from scripts.studies.study import slug

REPOSITORY = Path(__file__).parents[2]


def test_all_search_alike_and_no_two_runs_share_a_file(tmp_path: Path) -> None:
    searches, cells = list_searches(), list_cells()
    assert set(Counter(cell.arm for cell in searches).values()) == {6}
    assert set(Counter(cell.arm for cell in cells).values()) == {5}
    paths = [cell.path(tmp_path) for cell in [*searches, *cells]]
    assert len(set(paths)) == len(paths)
    assert {cell.seed for cell in searches}.isdisjoint(cell.seed for cell in cells)
    assert all(PAIR_OBJECTIVES.parse_sum([arm.objective], beta=0.3) for arm in ARMS)
    assert {*OTHERS, *OTHERS.values()} == {arm.name for arm in ARMS}
    assert {cell.arm for cell in list_cells(smoke=True)} == {*ARMS}


def write_chunks(folder: Path, lines: list[dict[str, Any]], *, pairs: int) -> None:
    (folder / "chunks").mkdir(parents=True)
    (folder / "chunks" / "000000000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "pairs").mkdir()
    Dataset.from_list([{"id": str(i)} for i in range(pairs)]).to_parquet(folder / "pairs" / "pairs-00000.parquet")


def test_tokens_by_hand(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """A tree counts once, however many pairs it has; a word is a token of the tiny tokenizer, and each answer has an end."""
    first, second = {"index": 0, "tokens": 30, "answer": " dog cat"}, {"index": 1, "tokens": 10, "answer": " dog"}
    write_chunks(tmp_path / "searched", [first, first, second, {"index": 2, "reason": "broken"}], pairs=2)
    assert read_search(tmp_path / "searched") == {"tokens": 20.0, "pairs": 2, "samples": 1}
    assert mean_tokens(tmp_path / "searched", str(tiny_llava_dir)) == 2.5
    write_chunks(tmp_path / "sampled", [{"index": 0, "responses": [" dog", " dog cat red"]}, {"index": 2, "reason": "broken"}], pairs=1)
    assert read_samples(tmp_path / "sampled", str(tiny_llava_dir)) == {"tokens": 6.0, "pairs": 1}


def write(path: Path, values: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_the_best_of_the_search_and_the_page(tmp_path: Path) -> None:
    steps, best = ARMS[:2]
    with pytest.raises(ValueError, match="steps, truth has no finished run"):
        best_of(steps, tmp_path)
    for cell in list_searches():
        if cell.arm == steps:
            write(cell.path(tmp_path), {"CHAIR_i": 20.0, "coverage": 60.0 + 20 * (cell.beta == "0.3")})
    assert best_of(steps, tmp_path) == ("0.3", "1e-4")
    said = {"hallucinated": 30.0, "CHAIR_i": 20.0, "coverage": 80.0, "POPE F1": 90.0, "yes": 50.0, "words": 9.0}
    write(tmp_path / "cells" / "sft.json", said)
    for seed in (1, 2):
        drawn = {"tokens": 600.0, "pairs": 900.0, "samples": 1.0}
        write(Cell(steps, seed).path(tmp_path), said | drawn | {"words": 11.0 + seed})
        write(Cell(best, seed).path(tmp_path), said | drawn | {"samples": 12.0})
    page = write_page(argparse.Namespace(out=tmp_path, report=tmp_path, quick=False, smoke=False)).read_text()
    assert "| SFT (the start) |" in page
    assert "| best of N, truth | 2 | 600.0 ± 0.0 | 12.0 ± 0.0 | 900.0 ± 0.0 |" in page
    assert "| steps, truth - best of N, truth | +0.0 ± 0.0 (p = 1.000) | +0.0 ± 0.0 (p = 1.000) | +3.5 ± 6.4 (p = 0.090) |" in page
    assert "0.3: **80.0**, 80.0" in page
    assert slug(steps.name) == "steps-truth"


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.search_pairs", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "search_pairs.md").read_text()
    for arm in ARMS:
        assert page.count(f"| {arm.name} |") == 3, "what it says, its data, its search"
    counts = json.loads((tmp_path / "data" / "1" / "truth.json").read_text())
    assert all(one["pairs"] > 0 and one["tokens"] > 0 for one in counts.values())

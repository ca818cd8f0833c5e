"""The study of a trained rubric judge: what is counted of its rubrics, its page, and the way through all of it."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from scripts.studies.rubric_judge import FULL, QUICK, SEEDS, SMOKE, SMOKE_ARMS, Work, measure_judge, report
from scripts.studies.rubric_judge_page import JUDGES, POLICIES, Cell
from scripts.studies.study import write_json

REPOSITORY = Path(__file__).parents[2]


def test_what_is_counted_of_a_judge(tmp_path: Path) -> None:
    """Of four pairs in both orders: one margin for the better response, one against it, two pairs without."""
    work = Work(tmp_path, 1, SMOKE, smoke=True)
    world = work.rows / "held-out" / "world"
    write_json(world / "world.json", {})
    rows = {"id": list("abcd"), "source": ["world"] * 4, "truth_kind": ["omit", "omit", "swap", "swap"]}
    (world / "pairs").mkdir()
    Dataset.from_dict(rows).to_parquet(world / "pairs" / "train.parquet")
    counts = {"replies": 8, "inconsistent": 2, "right": 3, "ties": 1, "prefer_first": 4, "prefer_second": 1}
    found = work.rows / "held-out-judge-sft"
    write_json(found / "traces.json", {"all": counts, "sources": {"omit": counts | {"replies": 4}, "swap": counts | {"right": 0}}})
    Dataset.from_dict({"gap_rubric": [0.25, -0.5]}).to_parquet(found / "scored.parquet")
    expected = {"right": 37.5, "inconsistent": 25.0, "first": 80.0, "read": 50.0, "agrees": 25.0, "right omit": 75.0, "right swap": 0.0}
    assert measure_judge("judge-sft", work) == expected
    (found / "scored.parquet").unlink()
    assert measure_judge("judge-sft", work) == expected | {"read": 0.0, "agrees": 0.0}


def test_the_page(tmp_path: Path) -> None:
    judged = {"inconsistent": 5.0, "first": 50.0, "read": 90.0, "agrees": 80.0, "right omit": 70.0}
    said = {"CHAIR_i": 20.0, "coverage": 80.0, "hallucinated": 30.0, "POPE F1": 90.0}
    for seed in SEEDS:
        write_json(Cell("judge-sft", seed).path(tmp_path), judged | {"right": 60.0})
        write_json(Cell("judge-dpo", seed).path(tmp_path), judged | {"right": 60.0 + seed})
        write_json(Cell("dpo", seed).path(tmp_path), said)
        write_json(Cell("smpo-judge", seed).path(tmp_path), said | {"hallucinated": 20.0 - seed})
    page = report(argparse.Namespace(out=tmp_path, report=tmp_path, quick=False, smoke=False)).read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    found = {name: [line for line in lines if line[0] == name] for name in (JUDGES | POLICIES).values()}
    whole, by_fault, difference = found[JUDGES["judge-dpo"]]
    assert (whole[1:3], by_fault[1:]) == (["3", "62.0 ± 2.5"], ["3", "70.0 ± 0.0"])
    assert difference[1] == "+2.0 ± 2.5 (p = 0.074)"
    assert found[POLICIES["smpo-judge"]][1][2] == "-12.0 ± 2.5 (p = 0.002)"
    assert not found[JUDGES["judge-more"]]
    assert not found[POLICIES["smpo-world"]]


def test_forms() -> None:
    """The quick form is half of the full one, and every arm has a file of its own."""
    assert all(2 * small == large for small, large in zip(vars(QUICK).values(), vars(FULL).values(), strict=True))
    names = [*JUDGES, *POLICIES]
    assert set(SMOKE_ARMS) < set(names)
    assert len({Cell(name, seed).path(Path()) for name in names for seed in SEEDS}) == len(names) * len(SEEDS)


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.rubric_judge", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "rubric_judge.md").read_text()
    assert all(f"\n| {(JUDGES | POLICIES)[name]} | 1 |" in page for name in SMOKE_ARMS)
    cell = Cell("dpo", SEEDS[0]).path(tmp_path)
    before = {path: json.loads(path.read_text()) for path in tmp_path.glob("cells/1/*.json") if not path.name.endswith(".log.json")}
    cell.unlink()
    subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=900, check=True)
    assert json.loads(cell.read_text()) == before[cell], "the same numbers again"

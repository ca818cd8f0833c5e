"""The LLaVA-MoD study: every arm has a start that is made before it, and it runs from the teacher to the page."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.files import read_json
from scripts.studies import llava_mod as study
from scripts.studies.llava_mod import ARMS, FFN, WIDTH
from scripts.studies.page import read_runs
from scripts.studies.study import slug, write_json
from scripts.studies.world import read_metrics

REPOSITORY = Path(__file__).parents[2]


def test_each_arm_begins_with_one_that_is_listed_before_it() -> None:
    made = {"", "teacher"}
    for arm in study.ARMS:
        assert arm.parent in made, arm.name
        assert arm.name not in made
        made.add(arm.name)


def test_cells_of_both_forms(tmp_path: Path) -> None:
    quick, full = (study.list_cells((1, 2), quick=quick) for quick in (True, False))
    assert set(quick) < set(full)
    assert {cell.seed for cell in quick} == {1, 2}
    assert full[0].path(tmp_path) == tmp_path / "cells" / "1" / "dense-sft.json"


def test_what_the_page_compares_is_measured() -> None:
    pairs = study.MIMIC_BEATS_SFT + study.SPARSE_BEATS_DENSE + study.REFERENCES
    assert {name for pair in pairs for name in pair} <= set(study.NAMES.values())


def test_differences_are_of_the_same_seeds(tmp_path: Path) -> None:
    """Seeds 1 and 2 differ by -3 and -5; seed 3 has no counterpart."""
    numbers = {"CHAIR_i": 10.0, "coverage": 90.0, "POPE F1": 80.0, "general": 70.0, "words": 20.0, "weights": 2000.0, "activated": 1000.0}
    for arm, seed, value in (
        ("dense-mimic", 1, 27),
        ("dense-mimic", 2, 25),
        ("dense-mimic", 3, 99),
        ("dense-sft", 1, 30),
        ("dense-sft", 2, 30),
    ):
        write_json(tmp_path / "cells" / str(seed) / f"{arm}.json", numbers | {"hallucinated": float(value)})
    runs = read_runs(tmp_path / "cells", read=read_metrics)
    table = study.differences_table(runs, study.MIMIC_BEATS_SFT)
    assert "| dense mimic - dense SFT | -4.0 ± 12.7 (p = 0.156) | +0.0" in table
    assert runs["dense-sft"][1]["object F1"] == pytest.approx(90.0)


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.llava_mod", "--smoke", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    arms = [arm for arm in ARMS if arm.measured and arm.quick]
    assert {path.stem for path in tmp_path.glob("cells/1/*.json") if not path.name.endswith(".log.json")} == {
        slug(arm.name) for arm in arms
    }
    assert not list(tmp_path.glob("models/*")), "weights are deleted"
    sparse, dense = (read_json(tmp_path / "cells" / "1" / f"{name}-mimic.json") for name in ("sparse", "dense"))
    # Two of the four layers: a second expert for each token, and routers of 4 x 64.
    assert sparse["activated"] - dense["activated"] == 2 * (3 * WIDTH * FFN + 4 * WIDTH)
    assert sparse["weights"] - dense["weights"] == 2 * (3 * 3 * WIDTH * FFN + 4 * WIDTH)
    page = (tmp_path / "llava_mod.md").read_text()
    assert "| sparse mimic | 1 |" in page
    for name in ("tradeoff", "experts"):
        assert (tmp_path / f"llava_mod_{name}.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    cell = tmp_path / "cells" / "1" / "dense-sft.json"
    cell.unlink()
    subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=900, check=True)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    assert {path for path in before if after[path] != before[path]} == {cell, cell.with_suffix(".log.json")}

"""The study of two heads against one: which cells run, how they are compared, and its path at smoke size."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "studies" / "dho.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dho_study", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dho_study"] = module
    spec.loader.exec_module(module)
    return module


def scored(**heads: float) -> dict[str, Any]:
    return {"test": {head: {"accuracy": value} for head, value in heads.items()}}


def test_quick_cells_come_first_and_all_forms_have_five_seeds(study: ModuleType) -> None:
    quick, full = study.list_cells(quick=True), study.list_cells(quick=False)
    assert set(quick) <= set(full)
    assert len(set(full)) == len(full)
    forms = {"dual-head", "single-head", "ce-only", "kd-only", "feature-kd", "fixmatch"}
    for labels in study.TABLE_LABELS:
        for student in ("small", "medium"):
            found = {(cell.form, cell.seed) for cell in full if (cell.labels, cell.student) == (labels, student)}
            assert found >= {(form, seed) for form in forms for seed in range(5)}


def test_gain_is_over_the_best_single_head_of_the_same_seed(study: ModuleType) -> None:
    cell = study.Cell
    cells = {
        cell("1%", "real", "dual-head", 0): scored(ce_head=0.3, kd_head=0.4, mixed=0.5),
        cell("1%", "real", "kd-only", 0): scored(ce_head=0.42),
        cell("1%", "real", "single-head", 0, label_weight=0.2): scored(ce_head=0.47),
        cell("1%", "real", "single-head", 1): scored(ce_head=0.9),
        cell("1%", "weak", "kd-only", 0): scored(ce_head=0.9),
        cell("1%", "none", "ce-only", 0): scored(ce_head=0.2),
    }
    assert study.gains(cells) == {("1%", "real"): [pytest.approx(3.0)]}


def test_interval_by_hand(study: ModuleType) -> None:
    """Of 1, 2, 3: mean 2, deviation 1, 4.30 / sqrt 3."""
    assert study.interval([1.0, 2.0, 3.0]) == "2.0 ± 2.5 (3)"
    assert study.interval([1.0]) == "1.0 (1 seed)"


@pytest.mark.slow
def test_smoke_size_runs_and_goes_on(shared_data: Path, tmp_path: Path) -> None:
    words = ["--data", str(shared_data / "cifar10"), "--out", str(tmp_path / "out"), "--page", str(tmp_path / "page"), "--smoke"]
    subprocess.run([sys.executable, str(SCRIPT), *words], cwd=REPOSITORY, check=True, capture_output=True, timeout=500)
    page = (tmp_path / "page" / "dho.md").read_text()
    assert "DHO, tuned mixing" in page
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(cells) >= 8
    subprocess.run([sys.executable, str(SCRIPT), *words], cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}

"""The study of two heads against one: which cells run, how they are compared, and its path at smoke size."""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scripts.studies.dho_beside import closed_form_table, discovered_table, rivals_table, show
from scripts.studies.dho_cells import CLOSED_FORM, CORNERS, RIVALS, TABLE_LABELS, Cell, best_single_heads, gain, list_cells
from scripts.studies.dho_page import write_page
from tests.conftest import REPOSITORY


def scored(validation: float, **heads: float) -> dict[str, Any]:
    parts = {"test": heads, "validation": dict.fromkeys(heads, validation)}
    return {part: {head: {"accuracy": value} for head, value in values.items()} for part, values in parts.items()}


def test_quick_cells_come_first_and_all_forms_have_five_seeds() -> None:
    quick, full = list_cells(quick=True), list_cells(quick=False)
    assert full[: len(quick)] == quick
    assert len(set(full)) == len(full) == len({cell.name for cell in full})
    forms = {"dual-head", "single-head", "ce-only", "kd-only", "feature-kd", "fixmatch"}
    for labels in TABLE_LABELS:
        for student in ("small", "medium"):
            found = {(cell.form, cell.seed) for cell in full if (cell.labels, cell.student) == (labels, student)}
            assert found >= {(form, seed) for form in forms for seed in range(5)}


@pytest.fixture
def cells() -> dict[Cell, dict[str, Any]]:
    """Validation prefers the single head with w = 0.5, the test images the one with 0.2; another seed, teacher and length stand apart."""
    return {
        Cell("1%", "real", "dual-head", 0): scored(0.5, ce_head=0.3, kd_head=0.4, mixed=0.5),
        Cell("1%", "real", "kd-only", 0): scored(0.41, ce_head=0.42),
        Cell("1%", "real", "single-head", 0, label_weight=0.2): scored(0.43, ce_head=0.47),
        Cell("1%", "real", "single-head", 0): scored(0.45, ce_head=0.44),
        Cell("1%", "none", "ce-only", 0): scored(0.3, ce_head=0.2),
        Cell("1%", "real", "dual-head", 1): scored(0.5, ce_head=0.3, kd_head=0.4, mixed=0.5),
        Cell("1%", "real", "single-head", 1): scored(0.9, ce_head=0.9),
        Cell("1%", "weak", "single-head", 0): scored(0.9, ce_head=0.9),
        Cell("1%", "real", "single-head", 0, steps=1600): scored(0.9, ce_head=0.9),
    }


def test_rival_is_the_single_head_that_validation_prefers_on_the_same_seed(cells: dict[Cell, dict[str, Any]]) -> None:
    assert best_single_heads(cells, "1%", teacher="real") == {0: pytest.approx(44.0)}
    assert gain(cells, "1%") == [pytest.approx(6.0)]
    assert gain(cells, "1%", "test") == [pytest.approx(3.0)]
    assert gain(cells, "1%", "equal") == [pytest.approx(6.0), pytest.approx(-40.0)]
    # Without KD only it is not known which single head is the best.
    del cells[Cell("1%", "real", "kd-only", 0)]
    assert gain(cells, "1%") == []


def test_closed_form_stands_beside_the_heads_of_the_same_students() -> None:
    cells = {
        Cell("1%", "blind", "closed-form", seed): scored(
            0.5, ce_head=0.3, kd_head=0.3, mixed=0.35, **dict.fromkeys(CLOSED_FORM, 0.4 + 0.02 * seed)
        )
        for seed in (0, 1)
    }
    table = closed_form_table(cells)
    assert next(line for line in table.splitlines() if "CE head alone" in line).count("30.0 ± 0.0 (2)") == 1
    kernel = next(line for line in table.splitlines() if "kernel, both" in line)
    assert "41.0 ± " in kernel.split("|")[3]
    assert kernel.split("|")[2].strip() == ""
    found = {(cell.labels, cell.teacher, cell.seed) for cell in list_cells(quick=False) if cell.form == "closed-form"}
    assert found == {(labels, teacher, seed) for labels in ("1%", "10%") for teacher in ("real", "blind") for seed in range(5)}


def test_rivals_and_discovered_classes_have_their_controls() -> None:
    full = [cell for cell in list_cells(quick=False) if cell.beside]
    for seed in range(5):
        assert {(c.labels, c.teacher, c.form) for c in full if c.form in RIVALS and c.seed == seed} == {
            (labels, teacher, form) for labels, teacher in CORNERS for form in RIVALS
        }
        domains = {(c.teacher, c.form) for c in full if (c.data, c.seed, c.labels) == ("domains", seed, "1%")}
        students = {(teacher, form) for teacher in ("discovered", "k-means") for form in ("kd-only", "dual-head")}
        assert domains == {("none", "ce-only"), *students}
    assert not any(cell.beside for cell in list_cells(quick=True))
    cells = {Cell("1%", "blind", "sskd", 0): scored(0.5, ce_head=0.3, kd_head=0.4, mixed=0.3)}
    assert next(line for line in rivals_table(cells).splitlines() if "SSKD" in line).count("30.0 (1)") == 1
    teachers = {"discovered": 0.7, "k-means": 0.4, "shares_l1": 0.25}
    run = {**scored(0.5, ce_head=0.3, kd_head=0.3, mixed=0.35), "teachers": teachers}
    table = discovered_table({Cell("10%", one, "dual-head", 0, data="domains"): run for one in ("discovered", "k-means")}).splitlines()
    assert next(line for line in table if "discovered: the teacher" in line).endswith("|  | 70.0 (1) |")
    assert next(line for line in table if "k-means: the teacher" in line).endswith("|  | 40.0 (1) |")
    assert next(line for line in table if "L1" in line).endswith("|  | 25.0 (1) |")


def test_second_part_is_written_and_the_first_kept(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    cell = Cell("1%", "real", "closed-form", 0)
    run = scored(0.5, ce_head=0.3, kd_head=0.3, mixed=0.35, **dict.fromkeys(CLOSED_FORM, 0.4))
    cell.path(tmp_path).write_text(json.dumps({**run, "cell": asdict(cell)}))
    (tmp_path / "dho.md").write_text("# Prose\n\n<!-- measured -->\n\nthe map\n")
    for _ in range(2):
        write_page(argparse.Namespace(out=tmp_path, report=tmp_path))
        text = (tmp_path / "dho.md").read_text()
        assert text.startswith("# Prose\n\n<!-- measured -->\n\nthe map\n\n<!-- measured beside the map -->\n")
        assert text.count("40.0 (1)") == len(CLOSED_FORM)
        assert text.count("<!-- measured") == 2


def test_interval_by_hand() -> None:
    """Of 1, 2, 3: mean 2, deviation 1, 4.30 / sqrt 3."""
    assert show([1.0, 2.0, 3.0], sign=True) == "+2.0 ± 2.5 (3)"
    assert (show([-1.0], sign=True), show([])) == ("-1.0 (1)", "")


def test_page_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished cell"):
        write_page(argparse.Namespace(out=tmp_path, report=tmp_path / "page"))


@pytest.mark.slow
def test_smoke_size_runs_and_resumes(shared_data: Path, tmp_path: Path) -> None:
    words = ["--data", str(shared_data / "cifar10"), "--out", str(tmp_path / "out"), "--page", str(tmp_path / "page"), "--smoke"]
    subprocess.run([sys.executable, "-m", "scripts.studies.dho", *words], cwd=REPOSITORY, check=True, capture_output=True, timeout=500)
    page = (tmp_path / "page" / "dho.md").read_text()
    assert "DHO, tuned mixing" in page
    assert all(name in page for name in ("kernel, both", "SSKD", "discovered: the teacher itself", "k-means: DHO"))
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(cells) >= 8
    subprocess.run([sys.executable, "-m", "scripts.studies.dho", *words], cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}

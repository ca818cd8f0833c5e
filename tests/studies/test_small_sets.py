"""The study of small sets: paired arms, the page from finished runs, and from photographs to the page."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from mmalign.classifier.backbone import create_timm
from scripts.studies.small_sets_grid import ARMS, OTHERS, SEEDS, Cell, list_cells
from scripts.studies.small_sets_page import write_page
from scripts.studies.study import slug

REPOSITORY = Path(__file__).parents[2]


def test_every_arm_has_every_seed_and_its_own_file(tmp_path: Path) -> None:
    cells = list_cells(quick=False, smoke=False)
    assert {(cell.arm, cell.seed) for cell in cells} == {(arm, seed) for arm in ARMS for seed in SEEDS}
    assert len({cell.path(tmp_path) for cell in cells}) == len(cells) == len({cell.slug for cell in cells})
    assert {name for arm, others in OTHERS.items() for name in (arm, *others)} == {arm.name for arm in ARMS}
    # A learned set stands beside the very images that it began as, seen in the same way.
    views = {arm.name: arm.views for arm in ARMS}
    assert views[ARMS[2].name] == views[OTHERS[ARMS[2].name][0]] == "none"
    assert len(list_cells(quick=True, smoke=False)) == len(ARMS)


def test_page_compares_arms_seed_by_seed(tmp_path: Path) -> None:
    nothing, real, learned = ARMS[:3]
    for arm, accuracies in ((nothing, (20.0, 22.0)), (real, (21.0, 24.0)), (learned, (24.0, 25.0))):
        for seed, accuracy in enumerate(accuracies):
            path = Cell(arm, seed).path(tmp_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"1%": accuracy, "10%": 40.0}))
    page = write_page(argparse.Namespace(out=tmp_path, report=tmp_path, smoke=False)).read_text()
    assert slug(learned.name) == "100-distilled-images"
    assert "| 100 distilled images | 2 | 24.5 ± 6.4 | 40.0 ± 0.0 |" in page
    assert "| 100 distilled images - 100 real images | +2.0 ± 12.7 (p = 0.295) | +0.0 ± 0.0 (p = 1.000) |" in page
    assert "views |" not in page


def test_page_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished cell"):
        write_page(argparse.Namespace(out=tmp_path, report=tmp_path, smoke=False))


@pytest.mark.slow
def test_smoke(shared_data: Path, tmp_path: Path) -> None:
    """With a target of random weights."""
    target = tmp_path / "target.safetensors"
    save_file(create_timm("tf_efficientnet_lite0").state_dict(), target)
    words = [sys.executable, "-m", "scripts.studies.small_sets", "--smoke", "--data", str(shared_data / "cifar10"), "--target", str(target)]
    words += ["--out", str(tmp_path / "out"), "--report", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "small_sets.md").read_text()
    assert all(f"| {arm.name} | 1 |" in page for arm in ARMS)
    # The control is of the very images that the learned set began as.
    reports = [json.loads((tmp_path / "out" / "sets" / f"{name}-0" / "distilled.json").read_text()) for name in ("random", "distilled")]
    assert [one["steps"] for one in reports] == [0, 2]

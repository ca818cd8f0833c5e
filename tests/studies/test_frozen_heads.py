"""The study of heads on frozen features: the page from finished runs, and from photographs to the page."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from mmalign.classifier.backbone import create_timm
from scripts.studies.frozen_heads import ARMS, SEEDS, SHOTS, Cell, list_cells, write_page

REPOSITORY = Path(__file__).parents[2]


def test_every_arm_has_every_seed_and_its_own_file(tmp_path: Path) -> None:
    cells = list_cells(quick=False, smoke=False)
    assert {(cell.arm, cell.seed) for cell in cells} == {(arm, seed) for arm in ARMS for seed in SEEDS}
    assert len({cell.path(tmp_path) for cell in cells}) == len(cells)


def test_page_compares_heads_on_the_same_features(tmp_path: Path) -> None:
    kernel, ridge, _, random, *_ = ARMS
    for arm, accuracies in ((kernel, (20.0, 22.0)), (ridge, (24.0, 25.0)), (random, (10.0,))):
        for seed, accuracy in enumerate(accuracies):
            path = Cell(arm, seed).path(tmp_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dict(zip(SHOTS, (accuracy, 40.0, 60.0), strict=True))))
    page = write_page(argparse.Namespace(out=tmp_path, report=tmp_path)).read_text()
    assert "| ridge on ImageNet's features | 2 | 24.5 ± 6.4 | 40.0 ± 0.0 | 60.0 ± 0.0 |" in page
    assert "| kernel - ridge, ImageNet's | -3.5 ± 6.4 (p = 0.090) | +0.0 ± 0.0 (p = 1.000) | +0.0 ± 0.0 (p = 1.000) |" in page
    assert page.count("| kernel - ") == 1


def test_page_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished cell"):
        write_page(argparse.Namespace(out=tmp_path, report=tmp_path))


@pytest.mark.slow
def test_smoke(shared_data: Path, tmp_path: Path) -> None:
    """With random weights in the place of ImageNet's."""
    weights = tmp_path / "weights.safetensors"
    save_file(create_timm("tf_efficientnet_lite0").state_dict(), weights)
    words = [sys.executable, "-m", "scripts.studies.frozen_heads", "--smoke", "--data", str(shared_data / "cifar10")]
    words += ["--weights", str(weights), "--out", str(tmp_path / "out"), "--report", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "frozen_heads.md").read_text()
    assert all(f"| {arm.name} | 1 |" in page for arm in ARMS)
    assert len((tmp_path / "numbers" / "frozen_heads.jsonl").read_text().splitlines()) == len(ARMS)

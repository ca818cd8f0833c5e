"""The study of chasing adapters: every model once, what it measures by hand, and from the start to the page."""

import argparse
import json
import math
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from scripts.studies.chasing import make_domains, pair_loss
from scripts.studies.chasing_grid import ARMS, ORDERS, Cell, list_cells, list_rounds
from scripts.studies.chasing_page import write_page
from scripts.studies.world import load_copy

REPOSITORY = Path(__file__).parents[2]


def test_every_model_of_every_arm_is_made_once_and_behind_what_it_is_made_from(tmp_path: Path) -> None:
    cells = list_cells(3)
    names = [cell.name for cell in cells]
    assert len({cell.path(tmp_path) for cell in cells}) == len(cells) == 10
    wanted = {name for arm in ARMS for order in ORDERS for name in arm.models(order) if name is not None}
    assert wanted == set(names)
    for cell in cells:
        needed = [Cell(cell.how, cell.domains[:1], 3)] if cell.how in ("dpo", "ofs") else []
        needed = [Cell("ofs", (domain,), 3) for domain in cell.domains] if cell.how == "cofs" else needed
        assert all(one == cell or names.index(one.name) < names.index(cell.name) for one in needed)
    assert list(chain(*list_rounds())) == [1, 2, 3, 4, 5]
    assert list_rounds(quick=True) == ((1,),)


def test_the_loss_on_pairs_by_hand() -> None:
    """Beta is 0.3; log-ratios 1 and -1, then 0 and 0."""
    start = {"reference_logps_chosen": [-3.0, -2.0], "reference_logps_rejected": [-4.0, -2.0]}
    policy = {"reference_logps_chosen": [-2.0, -2.0], "reference_logps_rejected": [-5.0, -2.0]}
    assert pair_loss(start, start) == pytest.approx(math.log(2))
    assert pair_loss(policy, start) == pytest.approx((math.log1p(math.exp(-0.6)) + math.log(2)) / 2)


def test_domains_share_no_row(tmp_path: Path) -> None:
    make_domains(tmp_path, 5, number=6)
    found = {name: load_copy(tmp_path / f"{name}.parquet") for name in ("captions", "questions", "joint")}
    assert len(found["captions"]) == 6
    assert 1 <= len(found["questions"]) <= 6
    assert all(row["chosen"][0]["content"] in ("Yes.", "No.") for row in found["questions"])
    assert all(len(row["chosen"][0]["content"].split()) > 1 for row in found["captions"])
    assert sorted(found["joint"]["id"]) == sorted([*found["captions"]["id"], *found["questions"]["id"]])


def write(path: Path, values: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_the_page(tmp_path: Path) -> None:
    """Sequential DPO's loss on captions rises from 0.40 to 0.52 and 0.54, that of OFS from 0.40 to 0.45; COFS has no run."""
    said = {"CHAIR_i": 20.0, "coverage": 80.0, "POPE F1": 90.0, "loss questions": 0.6}
    for seed in (1, 2):
        write(tmp_path / "cells" / str(seed) / "sft.json", said | {"loss captions": 0.7})
        for how, last in (("dpo", 0.5 + 0.02 * seed), ("ofs", 0.45)):
            write(tmp_path / "cells" / str(seed) / f"{how}-captions.json", said | {"loss captions": 0.4})
            write(tmp_path / "cells" / str(seed) / f"{how}-captions-questions.json", said | {"loss captions": last})
        write(tmp_path / "cells" / str(seed) / "joint-captions-questions.json", said | {"loss captions": 0.42})
    page = write_page(argparse.Namespace(out=tmp_path, report=tmp_path, quick=False, smoke=False)).read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert ["SFT (the starts)", "2", "80.0 ± 0.0", "90.0 ± 0.0"] in lines
    rows = {line[0]: line for line in lines if len(line) > 6}
    assert rows["sequential DPO"][-2:] == ["53.0 ± 12.7", "13.0 ± 12.7"]
    assert rows["OFS-DPO"][-2:] == ["45.0 ± 0.0", "5.0 ± 0.0"]
    assert rows["joint DPO"][2:5] == ["", "", ""]
    assert "COFS-DPO" not in rows
    assert ["OFS-DPO", "+0.0 ± 0.0 (p = 1.000)", "+0.0 ± 0.0 (p = 1.000)", "-8.0 ± 12.7 (p = 0.079)"] in lines
    # The other order has joint DPO alone.
    assert page.count("## First ") == 2


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.chasing", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "chasing.md").read_text()
    for arm in ARMS:
        assert page.count(f"\n| {arm.name} |") == (2 if arm.name == "sequential DPO" else 4), arm.name
    start = json.loads((tmp_path / "cells" / "1" / "sft.json").read_text())
    assert start["loss captions"] == start["loss questions"] == pytest.approx(math.log(2), abs=1e-6)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    cell = tmp_path / "cells" / "1" / "cofs-captions-questions.json"
    cell.unlink()
    subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=900, check=True)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    assert {path for path in before if after[path] != before[path]} == {cell}

"""The study of image terms: the same budget for all, what it measures by hand, and from the start to the page."""

import argparse
import io
import json
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from mmalign.data.images import load_image
from mmalign.engine.views import Views
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from scripts.studies.image_terms import own_minus_other, rows_file, told_apart, write_grey
from scripts.studies.image_terms_grid import ARMS, DPO, Cell, best_of, list_rounds, list_searches, search_score
from scripts.studies.image_terms_page import write_page

REPOSITORY = Path(__file__).parents[2]
BLIND = ARMS[-1]


def test_arms_can_be_read_and_say_whether_they_need_another_image() -> None:
    for arm in ARMS:
        named = PAIR_OBJECTIVES.parse_sum([arm.objective], beta=0.3)
        assert {one.objective.beta for one in named} == {0.3}
        assert arm.needs_other == Views.of(cell for one in named for cell in one.objective.cells).need_other


@pytest.mark.parametrize("quick", [True, False])
def test_all_search_alike_and_no_two_runs_share_a_file(tmp_path: Path, quick: bool) -> None:
    search, cells = list_searches(quick=quick), list(chain(*list_rounds(quick=quick)))
    assert set(Counter(cell.arm for cell in search).values()) == {2 if quick else 6}
    assert {cell.arm.name for cell in search} == {cell.arm.searched_as or cell.arm.name for cell in cells}
    paths = [cell.path(tmp_path) for cell in [*search, *cells]]
    assert len(set(paths)) == len(paths)
    assert {cell.seed for cell in search}.isdisjoint(cell.seed for cell in cells)
    assert {cell.seed for cell in cells} == ({1} if quick else {1, 2, 3, 4, 5})
    assert not any(cell.arm.needs_other for cell in cells if cell.rows == "pairs")


def test_image_metrics_by_hand() -> None:
    """Two rows; own - other is 3 and -1 where it was 1 and -2, own - weakened 5 and 4 where it was 4 and 4."""
    shared = {"contrast_asked": ["description", "existence"], "contrast_likely": [False, True]}
    start = {
        "reference_logps_chosen": [-2.0, -3.0],
        "reference_logps_rejected": [-4.0, -4.0],
        "reference_logps_chosen_other": [-3.0, -1.0],
        "reference_logps_chosen_weakened": [-6.0, -7.0],
    }
    policy = {
        "reference_logps_chosen": [-1.0, -2.0],
        "reference_logps_rejected": [-7.0, -7.0],
        "reference_logps_chosen_other": [-4.0, -1.0],
        "reference_logps_chosen_weakened": [-6.0, -6.0],
    }
    assert own_minus_other(shared | policy, shared | start) == {
        "own - other": 1.0,
        "own - other > 0": 50.0,
        "own - weakened": 4.5,
        "own - weakened > 0": 100.0,
        "h own - other": 1.5,
        "h own - other > 0": 100.0,
        "h own - weakened": 0.5,
        "h own - weakened > 0": 50.0,
        "h chosen": 1.0,
        "h rejected": -3.0,
        "descriptions": 3.0,
        "descriptions > 0": 100.0,
        "questions": -1.0,
        "questions > 0": 0.0,
        "likely": -1.0,
        "likely > 0": 0.0,
    }


def test_told_apart_by_hand() -> None:
    """Of seven entries the last two count; the last line of a log is a summary."""
    log = [{"rewards/accuracy": share} for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)]
    assert told_apart([*log, {"train_runtime": 3.0}]) == pytest.approx(62.5)
    assert told_apart(log[:1]) == 0.0


def test_grey_rows_keep_everything_but_the_images(tmp_path: Path) -> None:
    def png(size: tuple[int, int], seed: int) -> dict[str, bytes | None]:
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    rows = [{"id": str(seed), "images": [png((5 + seed, 4), seed)], "images_other": [png((6, 6), 9)]} for seed in range(3)]
    images = List(ImageFeature())
    features = Features({"id": Value("string"), "images": images, "images_other": images})
    (tmp_path / "contrast").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "contrast" / "train.parquet")
    write_grey(tmp_path / "contrast" / "train.parquet", tmp_path / "grey" / "contrast.parquet")
    found = Dataset.from_parquet(str(tmp_path / "grey" / "contrast.parquet"), cache_dir=str(tmp_path / "cache"))
    assert found.features == features
    assert found["id"] == ["0", "1", "2"]
    for seed, row in enumerate(found):
        (own,), (other,) = row["images"], row["images_other"]
        assert own.size == (5 + seed, 4)
        pixels = np.unique(np.asarray(load_image(own)).reshape(-1, 3), axis=0)
        assert len(pixels) == 1
        assert len(set(pixels[0])) == 1, "grey"
        assert np.array_equal(np.asarray(other), np.asarray(load_image(rows[seed]["images_other"][0])))


def test_the_blind_arm_trains_on_grey_rows(tmp_path: Path) -> None:
    folder = tmp_path / "rows" / "2"
    assert rows_file(Cell(DPO, 2), tmp_path) == folder / "contrast" / "train.parquet"
    assert rows_file(Cell(DPO, 2, "pairs"), tmp_path) == folder / "pairs" / "train.parquet"
    assert rows_file(Cell(BLIND, 2, "pairs"), tmp_path) == folder / "grey" / "pairs.parquet"


def test_the_best_of_the_search_and_the_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DPO has no finished run"):
        best_of(BLIND, tmp_path)
    for cell in list_searches():
        if cell.arm == DPO:
            # Object F1 80 in all; pairs right decide.
            write(cell.path(tmp_path), {"CHAIR_i": 20.0, "coverage": 80.0, "pairs right": 50.0 + 20 * (cell.beta == "1")})
    assert best_of(DPO, tmp_path) == best_of(BLIND, tmp_path) == ("1", "1e-4")
    assert search_score({"CHAIR_i": 20.0, "coverage": 80.0, "pairs right": 70.0}) == 75.0
    shared = {"contrast_asked": ["description", "existence"], "contrast_likely": [False, True]}
    answers = ("chosen", "rejected", "chosen_other", "chosen_weakened")
    columns = shared | {f"reference_logps_{answer}": [-1.0, -1.0] for answer in answers}
    said = {"hallucinated": 30.0, "CHAIR_i": 20.0, "coverage": 80.0, "POPE F1": 90.0, "yes": 50.0, "words": 9.0}
    said |= {"pairs right": 40.0, "answered alike": 30.0, "told apart": 90.0}
    for seed in (1, 2):
        folder = tmp_path / "cells" / "contrast" / str(seed)
        write(folder / "sft-grey.json", said | {"pairs right": 0.0})
        write(folder / "sft.json", said | own_minus_other(columns, columns))
        for name, right in (("dpo", 50.0), ("mdpo", 60.0 + seed)):
            write(folder / f"{name}.json", said | own_minus_other(columns, columns) | {"pairs right": right})
        write(
            tmp_path / "cells" / "pairs" / str(seed) / "mdpo.json",
            said | own_minus_other(columns, columns) | {"pairs right": 40.0 + 2 * seed},
        )
    page = write_page(argparse.Namespace(out=tmp_path, report=tmp_path, quick=False, smoke=False)).read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    seeing = ["arm", "SFT (the starts)", "DPO", "mDPO"]
    saying = ["arm", "SFT (the starts)", "SFT, asked on grey pictures", "DPO", "mDPO"]
    contrast = [*seeing * 2, "arm", "DPO", "mDPO", *saying, "arm minus DPO", "mDPO"]
    assert rows == [*contrast, *["arm", "mDPO"] * 4, "contrast rows minus pairs", "mDPO", "arm", "DPO"]
    assert "| mDPO | +0.0 ± 0.0 (p = 1.000) | +0.0 ± 0.0 (p = 1.000) | +11.5 ± 6.4 (p = 0.028) |" in page
    assert "| +18.5 ± 6.4 (p = 0.017) |" in page, "61 - 42 and 62 - 44"
    assert page.endswith("| DPO | beta | 0.1: 65.0, 65.0 | 0.3: 65.0, 65.0 | 1: **75.0**, 75.0 |\n")


def write(path: Path, values: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.image_terms", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "image_terms.md").read_text()
    assert page.count("\n| S-VCO |") == 4 + 1 + 1, "four tables and differences on contrast rows, and the search"
    assert page.count("\n| CHiP |") == 2 * (4 + 1) + 1 + 1, "the same on pairs too, and what contrast rows change"
    start = json.loads((tmp_path / "cells" / "contrast" / "1" / "sft.json").read_text())
    assert start["h own - other"] == 0.0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    cell = tmp_path / "cells" / "contrast" / "1" / "chip.json"
    cell.unlink()
    subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=600, check=True)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/**/*.json")}
    assert {path for path in before if after[path] != before[path]} == {cell, cell.with_suffix(".log.json")}

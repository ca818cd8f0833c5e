"""The study of denoisers: its data, what it measures by hand, its page, and the whole path at its smallest size."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.data.images import load_image
from mmalign.pictures.reader import SIDE
from mmalign.worlds.scenes import SHAPES, Item, Scene
from mmalign.worlds.text import Speaker
from scripts.studies.denoisers import SMOKE, draw_contrast, make_rows, row_rng, share_right
from scripts.studies.denoisers_page import ARMS, COLUMNS, write_page
from scripts.studies.denoisers_reader import diversity, make_reader, objects_of, score_drawings
from scripts.studies.world import load_copy

REPOSITORY = Path(__file__).parents[2]
# A red circle at the top left and a blue star at the bottom right.
CIRCLE, STAR = Item(0, 0, 0), Item(3, 2, 3)
TRUTH = Scene((CIRCLE, STAR))


def test_scores_by_hand() -> None:
    """Of 2 + 2 wanted objects, 3 are drawn and 2 are right: a star of another colour, and nothing else in the other picture."""
    truth = objects_of(TRUTH)
    assert truth == [(0, 0, 0), (3, 2, 3)]
    scores = score_drawings([truth, [(3, 1, 3)]], [TRUTH, TRUTH])
    assert scores == pytest.approx({"F1": 100 * 2 * 2 / (3 + 4), "all right": 50, "false kinds": 0, "objects": 1.5})
    assert score_drawings([[(0, 0, 0), (5, 2, 3)]], [TRUTH])["false kinds"] == 50
    assert score_drawings([[]], [TRUTH]) == {"F1": 0.0, "all right": 0.0, "false kinds": 0.0, "objects": 0.0}


def test_diversity_by_hand() -> None:
    """Black, black and white: two of three pairs differ by all."""
    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")
    assert diversity([black, black, white]) == pytest.approx(200 / 3)


def test_share_right() -> None:
    assert share_right(TRUTH, TRUTH) == 1
    assert share_right(Scene((CIRCLE,)), TRUTH) == 0.75
    # Moved: both its old and its new quarter are wrong.
    assert share_right(Scene((CIRCLE, Item(3, 2, 2))), TRUTH) == 0.5


def test_rows(tmp_path: Path) -> None:
    make_rows(tmp_path, 1, SMOKE)
    pairs, lists, chosen = (load_copy(tmp_path / f"{name}.parquet") for name in ("pairs", "lists", "chosen"))
    for row, alone in zip(pairs, chosen, strict=True):
        own, other = (np.asarray(row[f"image_{side}"], dtype=int) for side in ("chosen", "rejected"))
        assert own.shape == (SIDE, SIDE, 3)
        changed = (np.abs(own - other) > 0).any(-1).mean()
        assert 0 < changed < 0.5
        assert row["score_rejected"] in (0.5, 0.75)
        assert np.array_equal(np.asarray(load_image(alone["image"])), own)
        assert alone["caption"] == row["caption"]
    # What paths of the pairs' captions are scored against.
    assert pairs["caption"] == [Speaker(SHAPES).detailed(draw_contrast(row_rng(1, 1, row)).own) for row in range(SMOKE.pairs)]
    for row in lists:
        assert row["scores"][0] == 1
        assert row["scores"][1] < 1
        assert len(row["images"]) == 4


def test_the_reader_learns_drawings(tmp_path: Path) -> None:
    """From 1,500 drawings; from 12,000 it reads 100% of 400 right. It is made once."""
    reader, right = make_reader(tmp_path, number=1500, epochs=12)
    assert 0.5 < right < 1
    again, same = make_reader(tmp_path, number=1, epochs=1)
    assert same == right
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in reader.state_dict().items())


def test_the_page(tmp_path: Path) -> None:
    values = dict.fromkeys(COLUMNS, 50.0)
    for seed in (1, 2):
        for arm, f1 in (("base", 40.0), ("chosen", 50.0), ("dpo", 50.0 + 2 * seed)):
            path = tmp_path / "cells" / str(seed) / f"{arm}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values | {"F1": f1}))
    text = write_page(argparse.Namespace(out=tmp_path, report=tmp_path)).read_text()
    rows = {line[0]: line for line in ([c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| "))}
    assert rows["base"][:3] == ["base", "2", "40.0 ± 0.0"]
    assert rows["Diffusion-DPO"][1] == "+3.0 ± 12.7 (p = 0.205)"
    assert "RankDPO on four" not in rows


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.denoisers", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / "denoisers.md").read_text()
    for name, arm in ARMS.items():
        assert text.count(f"\n| {arm.name} |") == (1 if name in ("base", "chosen") else 2), arm.name

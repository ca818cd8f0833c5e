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
from mmalign.denoisers.rows import to_pixels
from mmalign.worlds.render import draw_shapes
from mmalign.worlds.scenes import SHAPES, Item, Scene
from mmalign.worlds.text import Speaker
from scripts.studies.denoisers import SMOKE, draw_contrast, make_rows, row_rng, share_right
from scripts.studies.denoisers_page import ARMS, COLUMNS, write_page
from scripts.studies.denoisers_reader import NONE, SIDE, Reader, diversity, draw_scene, score_drawings
from scripts.studies.world import load_copy

REPOSITORY = Path(__file__).parents[2]
# A red circle at the top left and a blue star at the bottom right.
CIRCLE, STAR = Item(0, 0, 0), Item(3, 2, 3)
TRUTH = Scene((CIRCLE, STAR))


def test_scores_by_hand() -> None:
    """Of 2 + 2 wanted objects, 3 are drawn and 2 are right: a star of another colour, and nothing else in the other picture."""
    read = [TRUTH, Scene((Item(3, 1, 3),))]
    scores = score_drawings([read[0], read[1]], [TRUTH, TRUTH])
    assert scores["F1"] == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert scores["all right"] == 50
    assert scores["false kinds"] == 0
    assert scores["objects"] == 1.5
    assert score_drawings([Scene((CIRCLE, Item(5, 2, 3)))], [TRUTH])["false kinds"] == 50
    assert score_drawings([Scene(())], [TRUTH]) == {"F1": 0.0, "all right": 0.0, "false kinds": 0.0, "objects": 0.0}


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


def test_the_reader_learns_drawings() -> None:
    """A batch by heart: what it was shown, it says."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng) for _ in range(8)]
    pictures = [draw_shapes(scene, rng, SIDE) for scene in scenes]
    from scripts.studies.denoisers_reader import _as_tensors, _fit

    torch.manual_seed(0)
    reader = Reader()
    _fit(reader, *_as_tensors(scenes, pictures), epochs=60, batch=8)
    assert reader.eval().read(pictures) == scenes
    # A scene is likeliest in its own picture; by hand, over kinds of quarters and colours of objects.
    scores = reader.score(pictures, scenes[2])
    assert scores.index(max(scores)) == 2
    kinds, colours = (logits[0].log_softmax(-1) for logits in reader(to_pixels(pictures[2], side=SIDE)[None]))
    seen = {item.place: item for item in scenes[2].items}
    expected = sum(kinds[place, seen[place].kind if place in seen else NONE] for place in range(4))
    expected += sum(colours[place, item.colour] for place, item in seen.items())
    assert scores[2] == pytest.approx(expected.item(), abs=1e-5)
    assert to_pixels(pictures[0], side=SIDE).shape == (3, SIDE, SIDE)


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

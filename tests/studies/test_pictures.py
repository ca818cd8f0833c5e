"""The study of pictures: a tokenizer that learns, the same budget for all, the page, and from the start to the page."""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoProcessor, JanusForConditionalGeneration

from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.models.picture_tokens import find_picture_tokens
from mmalign.worlds.tokenizer import train_tokenizer
from scripts.studies.pictures_grid import ARMS, CONTROL, Cell, best_of, list_cells, list_searches
from scripts.studies.pictures_page import write_page
from scripts.studies.pictures_start import CODES, make_model

REPOSITORY = Path(__file__).parents[2]


def test_all_search_alike_and_no_two_runs_share_a_file(tmp_path: Path) -> None:
    searches, cells = list_searches(), list_cells()
    assert Counter(cell.arm.name for cell in searches) == {arm.name: 2 if arm == CONTROL else 6 for arm in ARMS}
    assert set(Counter(cell.arm for cell in cells).values()) == {5}
    paths = [cell.path(tmp_path) for cell in [*searches, *cells]]
    assert len(set(paths)) == len(paths)
    assert {cell.seed for cell in searches}.isdisjoint(cell.seed for cell in cells)
    for arm in ARMS[1:]:
        registry = LIST_OBJECTIVES if arm.method == "listwise" else PAIR_OBJECTIVES
        assert registry.parse_sum([arm.objective], beta=0.3)


def test_the_tokenizer_learns_and_is_saved_as_a_stock_one(tmp_path: Path) -> None:
    """Pictures of one colour each: after 60 steps they come back nearer than the mean picture would be, from the saved folder."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(np.full((32, 32, 3), rng.integers(0, 256, 3), dtype=np.uint8)) for _ in range(16)]
    train_tokenizer(["At the top left is a red star."] * 4).save_pretrained(tmp_path / "world" / "tokenizer")
    error = make_model(tmp_path / "janus", tmp_path / "world", [{"image": picture} for picture in pictures], steps=60)
    model, processor = JanusForConditionalGeneration.from_pretrained(tmp_path / "janus"), AutoProcessor.from_pretrained(tmp_path / "janus")
    tokens = find_picture_tokens(model)
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    codes = tokens.tokenize(pixels)
    assert codes.shape == (16, 64)
    assert 0 <= int(codes.min()) <= int(codes.max()) < CODES
    back = tokens.decode(codes).permute(0, 3, 1, 2)
    assert F.mse_loss(back, pixels).item() < 0.75 * pixels.var(0).mean().item()
    assert error < 0.75 * pixels.var(0).mean().item()
    assert torch.isfinite(back).all()


def write(path: Path, values: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_the_best_of_the_search_and_the_page(tmp_path: Path) -> None:
    arm = ARMS[1]
    with pytest.raises(ValueError, match="dpo has no finished run"):
        best_of(arm, tmp_path)
    for cell in list_searches():
        write(cell.path(tmp_path), {"f1": 60.0 + 10 * (cell.beta == "0.1") + (cell.learning_rate == "3e-4")})
    assert best_of(arm, tmp_path) == ("0.1", "3e-4")
    assert best_of(CONTROL, tmp_path) == ("0", "3e-4")
    said = {"f1": 50.0, "all_right": 20.0, "false_kinds": 9.0, "objects": 2.0, "diversity": 12.0, "guided f1": 60.0}
    write(tmp_path / "cells" / "sft.json", said)
    for seed in (1, 2):
        write(Cell(CONTROL, seed).path(tmp_path), said)
        write(Cell(arm, seed).path(tmp_path), said | {"f1": 52.0 + seed})
    page = write_page(argparse.Namespace(out=tmp_path, report=tmp_path, quick=False, smoke=False)).read_text()
    assert "| SFT (the start) |" in page
    assert "| dpo - more training on chosen | +3.5 ± 6.4 (p = 0.090) | +0.0 ± 0.0 (p = 1.000) |" in page


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.studies.pictures", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "pictures.md").read_text()
    for arm in ARMS:
        assert page.count(f"| {arm.name} |") == 2, "what it draws, its search"
    assert not list((tmp_path / "models").iterdir())

"""Rounds of a text-to-image pipeline: paths, pairs and lists of its own pictures; stopped ones end alike."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmalign.data.datasets import load_rows
from mmalign.data.images import load_image
from mmalign.files import read_json_object
from schedules.iterate import main as iterate
from tests.commands.test_resume import read_steps
from tests.tiny_models import random_text
from tests.tiny_pipelines import build_latent_pipeline, build_pixel_pipeline, save_pipeline

TRAIN = "--learning-rate 1e-3 --schedule constant --batch-size 2 --max-steps 2 --logging-steps 1 --save-steps 1"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(build_latent_pipeline(), tmp_path_factory.mktemp("pipeline") / "latent")


@pytest.fixture
def words(pipeline: Path, tmp_path: Path) -> list[str]:
    """Captions, and a scorer of how red a picture is, from 0 to 1."""
    rows = [{"id": f"c{i}", "caption": f"a {word} dog"} for i, word in enumerate(("red", "blue", "big"))]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = "import numpy as np\ndef red(caption, pictures, row):\n"
    (tmp_path / "score.py").write_text(code + "    return [float(np.asarray(one)[..., 0].mean()) / 255 for one in pictures]\n")
    scorer = f"function:{tmp_path / 'score.py'}:red"
    return [str(tmp_path / "captions.jsonl"), "--kind", "denoiser", "--scorer", scorer, "--model", str(pipeline), "--train", TRAIN]


def redness(image: Any) -> float:
    return float(np.asarray(load_image(image))[..., 0].mean()) / 255


def weights(out: Path, number: int) -> dict[str, torch.Tensor]:
    return load_file(out / f"round-{number}" / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def test_rounds_of_d3po_that_were_stopped_end_alike(pipeline: Path, words: list[str], tmp_path: Path) -> None:
    """The reddest picture's path against that of the least red one, held to the policy that sampled both."""
    sample = "--num-samples 3 --sampling-steps 3 --guidance 2 --paths"
    more = ["--rounds", "2", "--sample", sample, "--objective", "clipped_dpo:clip_range=0.5"]
    out = tmp_path / "out"
    assert iterate([*words, "--out", str(out), *more]) == 0
    for number, policy in ((1, str(pipeline)), (2, str(out / "round-1" / "model"))):
        folder = out / f"round-{number}"
        assert read_json_object(folder / "model" / "mmalign_run.json")["options"]["model"] == policy
        drawn, pairs = load_rows(folder / "sampled" / "samples.parquet"), load_rows(folder / "pairs.parquet")
        assert len(pairs) == 3
        for row, pair in zip(drawn, sorted(pairs, key=lambda pair: pair["id"]), strict=True):
            scores = [redness(image) for image in row["images"]]
            best, worst = scores.index(max(scores)), scores.index(min(scores))
            assert pair["paths"] == [row["paths"][best], row["paths"][worst]]
            assert pair["scores"] == pytest.approx([max(scores), min(scores)])
        first = read_steps(folder / "model")[0]
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert first["error/policy"] == pytest.approx(0.5, abs=0.1)
    expected = weights(out, 2)
    assert any(not torch.equal(value, expected[name]) for name, value in weights(out, 1).items())
    # As a kill between the last round's first checkpoint and its end leaves it.
    for name in ("round.json", "model/train_log.json", "model/unet/diffusion_pytorch_model.safetensors"):
        (out / "round-2" / name).unlink()
    shutil.rmtree(out / "round-2" / "model" / "checkpoints" / "checkpoint-2")
    assert iterate([*words, "--out", str(out), *more]) == 0
    assert all(torch.equal(value, expected[name]) for name, value in weights(out, 2).items())


@pytest.mark.slow
def test_rounds_of_d3po_make_pictures_redder(words: list[str], tmp_path: Path) -> None:
    """A random pipeline in pixel space; redness 0.40 at first, 0.45 after a round and 0.47 after two, of other noise."""
    captions = [{"id": f"c{i}", "caption": f"a {random_text(i, 3)}"} for i in range(32)]
    Path(words[0]).write_text("".join(json.dumps(row) + "\n" for row in captions))
    model = save_pipeline(build_pixel_pipeline(), tmp_path / "pixel")
    train = "--learning-rate 1e-3 --batch-size 16 --max-steps 60 --logging-steps 20"
    sample = "--num-samples 4 --paths --sampling-steps 10 --guidance 1 --batch-size 64"
    more = ["--rounds", "2", "--sample", sample, "--objective", "clipped_dpo", "--eval-data", words[0]]
    assert iterate([*words, "--out", str(tmp_path / "out"), *more, "--model", str(model), "--train", train]) == 0
    records = [read_json_object(tmp_path / "out" / f"round-{number}" / "round.json") for number in (1, 2)]
    began, *reached = records[0]["mean_score"], *(record["metrics"]["images/score"] for record in records)
    assert began + 0.02 < reached[0] < reached[1] - 0.01


def test_a_round_of_pairs_and_one_of_lists(words: list[str], tmp_path: Path) -> None:
    """Of pictures, without their paths; held-out captions are drawn by what was trained."""
    sample = ["--rounds", "1", "--sample", "--num-samples 3 --sampling-steps 3 --guidance 2"]
    assert iterate([*words, "--out", str(tmp_path / "pairs"), *sample, "--eval-data", words[0]]) == 0
    folder = tmp_path / "pairs" / "round-1"
    drawn = load_rows(folder / "sampled" / "samples.parquet")
    scores = [sorted(map(redness, row["images"])) for row in drawn]
    pairs = sorted(load_rows(folder / "pairs.parquet"), key=lambda pair: pair["id"])
    for row, own in zip(pairs, scores, strict=True):
        assert (row["score_chosen"], row["score_rejected"]) == pytest.approx((own[-1], own[0]))
        assert (redness(row["image_chosen"]), redness(row["image_rejected"])) == pytest.approx((own[-1], own[0]))
    evaluated = [redness(image) for row in load_rows(folder / "eval" / "samples.parquet") for image in row["images"]]
    assert read_json_object(folder / "round.json")["metrics"]["images/score"] == pytest.approx(np.mean(evaluated))
    assert iterate([*words, "--out", str(tmp_path / "lists"), *sample, "--method", "listwise", "--objective", "rank"]) == 0
    lists = load_rows(tmp_path / "lists" / "round-1" / "lists.parquet")
    assert [sorted(row["scores"]) for row in lists] == [pytest.approx(own) for own in scores]
    assert len({step["loss"] for step in read_steps(tmp_path / "lists" / "round-1" / "model")}) == 2

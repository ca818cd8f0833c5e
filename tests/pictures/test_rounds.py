"""Rounds of pictures: drawn, scored, paired or listed, trained on, by the round's policy; stopped ones end alike."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.images import load_image
from mmalign.files import read_json_object
from mmalign.pictures.reader import DrawingReader, save_reader
from schedules.iterate import main as iterate
from schedules.iterate_options import IterateOptions
from schedules.rounds_of_pictures import Pictures
from tests.commands.training import read_log

TRAIN = "--learning-rate 1e-3 --schedule constant --batch-size 4 --max-steps 2 --logging-steps 1 --save-steps 1"


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    rows = [{"id": f"c{i}", "caption": f"a {word} dog", "objects": [[i, 0, i % 4]]} for i, word in enumerate(("red", "blue", "big", "old"))]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def scorer(tmp_path: Path) -> str:
    """How red a picture is."""
    code = "import numpy as np\ndef red(caption, pictures, row):\n    assert caption == row['caption']\n"
    (tmp_path / "score.py").write_text(code + "    return [float(np.asarray(one)[..., 0].mean()) for one in pictures]\n")
    return f"function:{tmp_path / 'score.py'}:red"


def rounds(captions: Path, scorer: str, model: Path, out: Path, *more: str, number: int = 2) -> list[str]:
    words = [str(captions), "--kind", "pictures", "--scorer", scorer, "--model", str(model), "--out", str(out), "--rounds", str(number)]
    return [*words, "--sample", "--samples 3 --guidance 1", "--train", TRAIN, *more]


def redness(image: Any) -> float:
    return float(torch.tensor(list(load_image(image).getdata()), dtype=torch.float64)[:, 0].mean())


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "round-2" / "model" / "model.safetensors")


def test_two_rounds_of_dno(janus_dir: Path, captions: Path, scorer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reddest of a policy's own pictures against the least red, with win rates; the reference is the policy that drew them."""
    more = ["--rewards", "win-rate", "--objective", "dno", "--eval-data", str(captions), "--replay", "0.5"]
    assert iterate(rounds(captions, scorer, janus_dir, tmp_path / "out", *more)) == 0
    for number, policy in ((1, str(janus_dir)), (2, str(tmp_path / "out" / "round-1" / "model"))):
        folder = tmp_path / "out" / f"round-{number}"
        drawn = load_rows(folder / "sampled" / "data")
        assert read_json_object(folder / "round.json")["policy"] == policy
        assert read_json_object(folder / "model" / "mmalign_run.json")["options"]["model"] == policy
        own = [row for row in load_rows(folder / "pairs.parquet") if row["id"].split("/")[-2] == str(number)]
        assert len(own) == 4
        for i, row in enumerate(own):
            group = [(redness(one["image"]), one["codes"]) for one in drawn if one["id"] == f"c{i}"]
            assert (row["codes_chosen"], row["codes_rejected"]) == (max(group)[1], min(group)[1])
            # The best of three beats both others, the worst none.
            assert (row["score_chosen"], row["score_rejected"]) == (1.0, 0.0)
            assert redness(row["image_chosen"]) == max(group)[0]
        # dno at its reference: P ln 2 + (1 - P) ln 2.
        assert read_log(folder / "model")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert len(load_rows(tmp_path / "out" / "round-2" / "pairs.parquet")) == 4 + 2
    first, second = (load_rows(tmp_path / "out" / f"round-{n}" / "sampled" / "data")["codes"] for n in (1, 2))
    assert first != second
    metrics = read_json_object(tmp_path / "out" / "round-2" / "round.json")["metrics"]
    rows = load_rows(tmp_path / "out" / "round-2" / "eval" / "data")
    assert metrics["images/score"] == pytest.approx(sum(redness(row["image"]) for row in rows) / 12)
    assert "round 2: 4 pairs, mean score 0.500" in capsys.readouterr().out
    assert iterate(rounds(captions, scorer.replace("red", "blue"), janus_dir, tmp_path / "out", *more)) == 2
    assert "another schedule" in capsys.readouterr().err


def test_rounds_that_were_stopped_end_alike(janus_dir: Path, captions: Path, scorer: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert iterate(rounds(captions, scorer, janus_dir, out)) == 0
    expected, second = weights(out), out / "round-2"
    # As a kill between the last round's first checkpoint and its end leaves it.
    for name in ("round.json", "model/train_log.json", "model/model.safetensors"):
        (second / name).unlink()
    shutil.rmtree(second / "model" / "checkpoints" / "checkpoint-2")
    assert iterate(rounds(captions, scorer, janus_dir, out)) == 0
    assert all(torch.equal(value, expected[name]) for name, value in weights(out).items())
    # As a kill while the round's pictures are drawn leaves it.
    for path in (second / "sampled" / "data").glob("*"):
        path.unlink()
    shutil.rmtree(second / "model")
    for name in ("round.json", "pairs.parquet", "lists.parquet"):
        (second / name).unlink()
    first = (out / "round-1" / "round.json").stat().st_mtime_ns
    assert iterate(rounds(captions, scorer, janus_dir, out)) == 0
    assert all(torch.equal(value, expected[name]) for name, value in weights(out).items())
    assert (out / "round-1" / "round.json").stat().st_mtime_ns == first


def test_a_round_of_lists(janus_dir: Path, captions: Path, scorer: str, tmp_path: Path) -> None:
    """All pictures of a caption, right or wrong by their score; those that are all alike are left out; held to a copy of the policy."""
    words = ["--model", str(janus_dir), "--samples", "3", "--guidance", "1", "--seed", "1", "--out", str(tmp_path / "same")]
    assert mmalign(["sample-images", str(captions), *words]) == 0
    middle = sorted(map(redness, load_rows(tmp_path / "same" / "data")["image"]))[6]
    more = ["--method", "listwise", "--objective", "rank_dpo", "--correct", str(middle)]
    assert iterate(rounds(captions, scorer, janus_dir, tmp_path / "out", *more, number=1)) == 0
    folder = tmp_path / "out" / "round-1"
    drawn = load_rows(folder / "sampled" / "data")
    groups = [[float(redness(one["image"]) >= middle) for one in drawn if one["id"] == f"c{i}"] for i in range(4)]
    lists = load_rows(folder / "lists.parquet")
    assert lists["scores"] == [group for group in groups if len(set(group)) == 2]
    assert [codes for row in lists["codes_responses"] for codes in row] == [
        row["codes"] for row in drawn if len(set(groups[int(row["id"][1:])])) == 2
    ]
    record = read_json_object(folder / "round.json")
    assert record["alike"] == 1 - len(lists) / 4
    assert record["mean_score"] == pytest.approx(sum(map(sum, groups)) / 12)
    log = read_log(folder / "model")
    assert log[0]["rewards/margin"] == pytest.approx(0, abs=1e-5)
    assert log[1]["rewards/margin"] > 0


def test_a_reader_measures_held_out_captions(janus_dir: Path, captions: Path, tmp_path: Path) -> None:
    """Its mean score is what ``evaluate images`` calls the share of right quarters, of pictures that are drawn as in the rounds."""
    torch.manual_seed(0)
    save_reader(DrawingReader(12, 6).eval(), tmp_path / "reader", {})
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "model").symlink_to(janus_dir)
    options = IterateOptions(
        sources=[captions], model="m", out=tmp_path / "out", sample="--samples 2", kind="pictures", scorer=f"reader:{tmp_path / 'reader'}",
        eval_data=captions,
    )  # fmt: skip
    found = Pictures(options).measure(tmp_path / "round")
    assert mmalign(["sample-images", str(captions), "--model", str(janus_dir), "--samples", "2", "--out", str(tmp_path / "drawn")]) == 0
    words = ["evaluate", "images", str(tmp_path / "drawn" / "data"), "--reader", str(tmp_path / "reader"), "--out", str(tmp_path)]
    assert mmalign(words) == 0
    metrics = read_json_object(tmp_path / "images.json")["metrics"]
    assert found == {"images/score": pytest.approx(metrics["quarters_right"])}
    assert 0 < found["images/score"] < 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--kind", "pictures"], "--kind pictures needs --scorer"),
        (["--kind", "denoiser"], "--kind denoiser needs --scorer"),
        (["--scorer", "reader:r"], "--scorer is for --kind pictures or denoiser"),
        (["--kind", "pictures", "--scorer", "reader:r", "--repetition", "4"], "--repetition is of words"),
        (["--kind", "pictures", "--scorer", "reader:r", "--image-root", "x"], "--image-root is of words"),
        (["--kind", "pictures", "--scorer", "clip"], "scorer is 'clip'; expected reader:DIR, likelihood:DIR or function:FILE.py:NAME"),
    ],
)
def test_what_rounds_of_pictures_refuse(
    captions: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert iterate([str(captions), "--model", "m", "--out", str(tmp_path / "out"), "--sample", "", *more]) == 2
    assert message in capsys.readouterr().err


def test_captions_need_ids(janus_dir: Path, scorer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Dataset.from_list([{"caption": "a dog"}]).to_parquet(tmp_path / "captions.parquet")
    assert iterate(rounds(tmp_path / "captions.parquet", scorer, janus_dir, tmp_path / "out")) == 2
    assert "has no column id" in capsys.readouterr().err

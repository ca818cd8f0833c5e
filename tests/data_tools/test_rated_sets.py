"""Ratings, lists and published scores: the values that come out, and that every objective of scores trains from them at once."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset

from data_tools.convert_pairs import main
from data_tools.score_scale import Spread
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.losses.coefficients import difficulty_coefficients
from schedules.curry import main as curry
from tests.data_tools import sets

TRAIN = "--max-steps 1 --batch-size 3 --learning-rate 1e-3 --logging-steps 1"


def save_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def rated_record(number: int) -> dict[str, Any]:
    """The spec's ratings of three responses, whose means are 7/3, 11/3 and 5."""
    completions = [
        sets.rated(f"m{i}", f"{words} {number}.", *ratings)
        for i, (words, ratings) in enumerate([("A cat", "151"), ("A red dog", "353"), ("Two cups", "555")])
    ]
    return {"id": f"q-{number}", "prompt": "What is shown?", "completions": completions}


def vlfeedback(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    root = sets.save_images(folder / "images", *(f"{record['id']}.jpg" for record in records))
    return ["vlfeedback", str(save_lines(folder / "vlfeedback_80k.jsonl", records)), "--image-root", str(root), "--embed-images"]


def rated(ratings: list[tuple[int, int, int]], texts: list[str] | None = None) -> dict[str, Any]:
    texts = texts or [f"Answer {i}." for i in range(len(ratings))]
    completions = [sets.rated("m", text, *map(str, each)) for text, each in zip(texts, ratings, strict=True)]
    return {"id": "q", "prompt": "What?", "completions": completions}


def test_vlfeedback_pairs_have_their_mean_ratings(tmp_path: Path) -> None:
    """The spec's check values: means 2.333333, 3.666667 and 5 make three pairs with gaps 1.333333, 2.666667 and 1.333333."""
    assert main([*vlfeedback(tmp_path, [rated([(1, 5, 1), (3, 5, 3), (5, 5, 5)])]), "--out", str(tmp_path / "out")]) == 0
    rows = list(load_rows(tmp_path / "out" / "pairs"))
    assert [row["id"] for row in rows] == ["q/0-1", "q/0-2", "q/1-2"]
    assert [row["score_chosen"] for row in rows] == pytest.approx([11 / 3, 5, 5], abs=1e-9)
    assert [row["score_rejected"] for row in rows] == pytest.approx([7 / 3, 7 / 3, 11 / 3], abs=1e-9)


def test_a_list_has_each_text_once_with_its_higher_score(tmp_path: Path) -> None:
    records = [
        rated([(1, 5, 1), (3, 5, 3), (5, 5, 5), (5, 5, 2)], ["Bad.", "Fair.", "Good.", "Fair."]),
        {**rated([(5, 5, 5), (5, 5, 5)]), "id": "even"},
        {**rated([(5, 5, 5), (1, 1, 1)], ["Same.", "Same."]), "id": "same"},
    ]
    assert main([*vlfeedback(tmp_path, records), "--lists", "--out", str(tmp_path / "out")]) == 0
    (row,) = load_rows(tmp_path / "out" / "lists")
    assert row["responses"] == ["Bad.", "Fair.", "Good."]
    assert row["scores"] == pytest.approx([7 / 3, 4, 5], abs=1e-9)
    counts = json.loads((tmp_path / "out" / "conversion.json").read_text())["counts"]
    assert counts == {"records": 3, "with_one_score": 2, "too_long": 0, "lists": 1, "rejected": 0}


# Over the responses 7/3, 11/3 and 5: mean 11/3, population deviation sqrt(2) * 4/3 / sqrt(3).
DEVIATION = math.sqrt(32 / 27)
SCALED = {"minmax": [0.0, 0.5, 1.0], "zscore": [-4 / 3 / DEVIATION, 0.0, 4 / 3 / DEVIATION], "none": [7 / 3, 11 / 3, 5.0]}


@pytest.mark.parametrize("name", SCALED)
def test_scores_are_mapped_over_the_whole_set(tmp_path: Path, name: str) -> None:
    words = [*vlfeedback(tmp_path, [rated_record(i) for i in range(3)]), "--scale", name]
    assert main([*words, "--lists", "--out", str(tmp_path / "lists")]) == 0
    for row in load_rows(tmp_path / "lists" / "lists"):
        assert row["scores"] == pytest.approx(SCALED[name], abs=1e-9)
    # Pairs are on the same scale: each response is counted once, not once for each of its pairs.
    assert main([*words, "--out", str(tmp_path / "pairs")]) == 0
    row = load_rows(tmp_path / "pairs" / "pairs")[1]
    assert (row["score_chosen"], row["score_rejected"]) == pytest.approx((SCALED[name][2], SCALED[name][0]), abs=1e-9)


def test_the_spread_is_the_population_s() -> None:
    spread = Spread()
    spread.add([2.0, 4.0])
    spread.add([9.0])
    scale = spread.scale("zscore", what="x")
    assert (scale.zero, scale.one) == pytest.approx((5.0, 5.0 + math.sqrt(26 / 3)), abs=1e-12)


@pytest.mark.parametrize(
    ("set_name", "records", "more", "message"),
    [
        ("povid", sets.POVID, ["--lists"], "--lists: povid has no number for each response; sets that have: bpo, vlfeedback"),
        ("povid", sets.POVID, ["--scale", "minmax"], "--scale minmax: povid has no scores"),
        ("bpo", sets.BPO[2:], ["--scale", "zscore"], "--scale zscore: all 2 scores of bpo are 1; expected different ones"),
    ],
)
def test_what_can_not_be_scaled_or_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], set_name: str, records: list[dict[str, Any]], more: list[str], message: str
) -> None:
    words = [set_name, str(save_lines(tmp_path / "set.jsonl", records)), "--out", str(tmp_path / "out"), *more]
    if "--lists" in more:
        with pytest.raises(SystemExit, match="2"):
            main(words)
    else:
        assert main(words) == 2
    assert message in capsys.readouterr().err


def scored_bpo(*clip_scores: float | None) -> dict[str, Any]:
    """DA-DPO's scored form of a BPO record."""
    completions = [
        {"score": 1 - i, "response": f"Answer {i}.", "type": "gt", **({} if score is None else {"clip_score": score})}
        for i, score in enumerate(clip_scores)
    ]
    return {"prompt": "What?", "image": "a.jpg", "completions": completions}


@pytest.mark.parametrize(("chosen", "rejected", "gap", "difficulty"), [(0.7, 0.1, 0.6, 0.4), (0.1, 0.7, -0.6, 0.4), (1.9, 0.2, 1.7, 0.0)])
def test_published_gaps_give_the_released_beta(tmp_path: Path, chosen: float, rejected: float, gap: float, difficulty: float) -> None:
    """DA-DPO's trainer has beta (1 + |gap|); the spec's .7 and .1 give difficulty .4 and beta .16 at .1."""
    root = sets.save_images(tmp_path, "a.jpg")
    file = save_lines(tmp_path / "scored.jsonl", [scored_bpo(chosen, rejected)])
    assert main(["bpo", str(file), "--image-root", str(root), "--out", str(tmp_path / "out")]) == 0
    (row,) = load_rows(tmp_path / "out" / "pairs")
    assert (row["gap_published"], row["difficulty"]) == pytest.approx((gap, difficulty), abs=1e-9)
    beta = difficulty_coefficients(torch.tensor([row["difficulty"]], dtype=torch.float64), beta=0.1, mode="paper").beta
    # The kernel computes in float32.
    assert beta.tolist() == pytest.approx([0.1 * (1 + min(1, abs(gap)))], abs=1e-7)


def test_a_row_without_what_the_first_has_is_a_reject(tmp_path: Path) -> None:
    root = sets.save_images(tmp_path, "a.jpg")
    file = save_lines(tmp_path / "scored.jsonl", [scored_bpo(0.7, 0.1), scored_bpo(0.7, None)])
    words = ["bpo", str(file), "--image-root", str(root), "--max-reject-share", "0.5", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject["reason"] == "the row has no gap_published, difficulty, which the first row has; convert the two kinds apart"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten records in VLFeedback's form, by three commands: pairs, lists, and lists of scores in [0, 1]."""
    folder = tmp_path_factory.mktemp("vlfeedback")
    words = vlfeedback(folder, [rated_record(i) for i in range(10)])
    for name, more in {"plain": [], "lists": ["--lists"], "unit": ["--lists", "--scale", "minmax"]}.items():
        assert main([*words, *more, "--out", str(folder / name)]) == 0
    return folder


@pytest.mark.parametrize("objective", ["madpo", "dno", "smpo", "adpo_pair"])
def test_pairs_of_ratings_train(converted: Path, tiny_llava_dir: Path, tmp_path: Path, objective: str) -> None:
    words = f"train preference --model {tiny_llava_dir} --data {converted}/plain/pairs --objective {objective} --out {tmp_path}/out {TRAIN}"
    assert mmalign(words.split()) == 0
    assert math.isfinite(json.loads((tmp_path / "out" / "train_log.json").read_text())[0]["loss"])
    assert not (tmp_path / "out" / "rejects.jsonl").exists()


@pytest.mark.parametrize(("objective", "data"), [("adpo", "lists"), ("irpo", "lists"), ("plackett_luce", "lists"), ("tpo", "unit")])
def test_lists_of_ratings_train(converted: Path, tiny_llava_dir: Path, tmp_path: Path, objective: str, data: str) -> None:
    words = f"train listwise --model {tiny_llava_dir} --data {converted}/{data}/lists --objective {objective} --out {tmp_path}/out {TRAIN}"
    assert mmalign(words.split()) == 0
    assert math.isfinite(json.loads((tmp_path / "out" / "train_log.json").read_text())[0]["loss"])
    assert not (tmp_path / "out" / "rejects.jsonl").exists()


@pytest.mark.parametrize("data", ["lists/lists", "plain/pairs"])
def test_a_curriculum_of_ratings_trains(converted: Path, tiny_llava_dir: Path, tmp_path: Path, data: str) -> None:
    words = [str(converted / data), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "out"), "--stages", "2", "--train", TRAIN]
    assert curry(words) == 0
    assert (tmp_path / "out" / "stage-2" / "model.safetensors").is_file()


def test_plain_datasets_reads_pairs_and_lists(converted: Path) -> None:
    for name in ("plain/pairs", "lists/lists"):
        rows = load_dataset("parquet", data_files=str(converted / name / "*.parquet"), split="train")
        assert rows[0]["images"][0].size == (32, 40)

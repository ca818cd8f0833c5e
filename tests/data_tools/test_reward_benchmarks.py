"""Benchmarks of reward models: which response is the better one, groups by id, and both means of a scored file."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.convert_pairs import main as convert_pairs
from data_tools.reward_benchmarks import mm_rlhf_rewardbench, multimodal_rewardbench, vl_rewardbench
from mmalign.cli import main
from mmalign.errors import UserError
from tests.data_tools.sets import save_images


def vl(identifier: str, ranks: list[int]) -> dict[str, Any]:
    return {"id": identifier, "image": "a.jpg", "query": "what do you see", "response": ["a dog", "a cat"], "human_ranking": ranks}


@pytest.mark.parametrize(
    ("identifier", "group"),
    [
        ("RLAIF-V-1", "hallucination"),
        ("RLHF-V_2", "hallucination"),
        ("hallucination_pair-3", "hallucination"),
        ("mathverse_4", "reasoning"),
        ("mmmu_pro-5", "reasoning"),
        ("wildvision-battle-6", "general"),
        ("VLFeedback-7", "general"),
        ("other-8", "general"),
    ],
)
def test_vl_groups(identifier: str, group: str) -> None:
    (pair,) = vl_rewardbench(vl(identifier, [0, 1]), "0")
    assert pair.source == f"vl-rewardbench/{group}"


def test_the_better_response_of_vl_has_rank_0() -> None:
    for ranks, expected in (([0, 1], ["a dog", "a cat"]), ([1, 0], ["a cat", "a dog"])):
        (pair,) = vl_rewardbench(vl("x", ranks), "0")
        assert pair.texts() == expected
    for ranks in ([0, 0], [1], [1, 2]):
        with pytest.raises(UserError, match="expected two texts with ranks 0 and 1"):
            vl_rewardbench(vl("x", ranks), "0")


@pytest.mark.parametrize(
    ("identifier", "category", "group"),
    [
        ("Pairs/1", "safety", "safety/bias"),
        ("hateful/2", "safety", "safety/toxicity"),
        ("Math/3", "reasoning", "reasoning/math"),
        ("webcode/4", "reasoning", "reasoning/coding"),
        ("vqa/5", "vqa", "vqa"),
    ],
)
def test_multimodal_groups_and_sides(identifier: str, category: str, group: str) -> None:
    record = {"ID": identifier, "Category": category, "Image": "a.jpg", "Text": "what", "Output1": "a dog", "Output2": "a cat"}
    for better, expected in (("Output1", ["a dog", "a cat"]), ("Output2", ["a cat", "a dog"])):
        (pair,) = multimodal_rewardbench({**record, "Better": better}, "0")
        assert (pair.source, pair.texts()) == (f"multimodal-rewardbench/{group}", expected)
    with pytest.raises(UserError, match="Better is 'tie'; expected Output1 or Output2"):
        multimodal_rewardbench({**record, "Better": "tie"}, "0")


def mm_rlhf(identifier: str, image: str, chosen: str, rejected: str) -> dict[str, Any]:
    reasons = {"chosen_reason": "right", "rejected_reason": "wrong"}
    return {"id": identifier, "image": image, "prompt": "what do you see", "chosen": chosen, "rejected": rejected, **reasons}


@pytest.mark.parametrize(
    ("image", "group"),
    [
        ("mcq/073712.png", "mcq"),
        ("long/1.png", "long"),
        ("short/1.png", "short"),
        ("safety/1.png", "safety"),
        # The first word of the list that is anywhere in the path, as the authors' script finds it.
        ("short/so_long.png", "long"),
        ("1.png", "other"),
    ],
)
def test_mm_rlhf_groups(image: str, group: str) -> None:
    (pair,) = mm_rlhf_rewardbench(mm_rlhf("7", image, "a dog", "a cat"), "0")
    assert (pair.id, pair.source, pair.texts()) == ("7", f"mm-rlhf-rewardbench/{group}", ["a dog", "a cat"])
    with pytest.raises(UserError, match="has a video"):
        mm_rlhf_rewardbench({**mm_rlhf("7", image, "a dog", "a cat"), "video": "video/1"}, "0")


def test_all_pairs_of_a_question_count_as_one(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pair in both orders: one of the two is right, so the question is never whole. The other question has one pair, as in one order."""
    rows = [
        mm_rlhf("7", "mcq/a.jpg", "a dog", "a cat"),
        mm_rlhf("7", "mcq/a.jpg", "a cat", "a dog"),
        mm_rlhf("8", "long/a.jpg", "a cat", "a dog"),
    ]
    file = tmp_path / "mm_reward_bench.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = save_images(tmp_path / "images", "mcq/a.jpg")
    (root / "long").mkdir()
    (root / "long" / "a.jpg").write_bytes((root / "mcq" / "a.jpg").read_bytes())
    assert convert_pairs(["mm-rlhf-rewardbench", str(file), "--image-root", str(root), "--out", str(tmp_path / "pairs")]) == 0
    words = ["--model", str(tiny_llava_dir), "--image-root", str(root), "--out", str(tmp_path / "out")]
    assert main(["score-rewards", str(tmp_path / "pairs" / "pairs"), *words]) == 0
    told = json.loads((tmp_path / "out" / "rewards.json").read_text())
    mcq, long = (told["sources"][f"mm-rlhf-rewardbench/{name}"] for name in ("mcq", "long"))
    assert mcq == {"num_pairs": 2, "accuracy": 0.5, "num_questions": 1, "all_right": 0.0}
    assert long["accuracy"] == long["all_right"] == told["all_right"] * 2
    assert (told["num_questions"], told["accuracy"]) == (2, pytest.approx((1 + long["accuracy"]) / 3))
    assert "all pairs right" in capsys.readouterr().out


def test_both_means_are_told_with_counts(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """Opposite labels of one pair: whatever the model says, it is right on one side. Hallucination 3 or 0 of 3, general 0 or 1 of 1."""
    rows = [vl(f"RLAIF-V-{i}", [0, 1]) for i in range(3)] + [vl("wildvision-3", [1, 0])]
    file = tmp_path / "test.json"
    file.write_text(json.dumps(rows))
    root = save_images(tmp_path / "images", "a.jpg")
    assert convert_pairs(["vl-rewardbench", str(file), "--image-root", str(root), "--out", str(tmp_path / "pairs")]) == 0
    words = ["--model", str(tiny_llava_dir), "--image-root", str(root), "--out", str(tmp_path / "out")]
    assert main(["score-rewards", str(tmp_path / "pairs" / "pairs"), *words]) == 0
    told = json.loads((tmp_path / "out" / "rewards.json").read_text())
    counts = {name: own["num_pairs"] for name, own in told["sources"].items()}
    assert counts == {"vl-rewardbench/general": 1, "vl-rewardbench/hallucination": 3}
    right = told["sources"]["vl-rewardbench/hallucination"]["accuracy"]
    assert right in (0.0, 1.0)
    assert told["sources"]["vl-rewardbench/general"]["accuracy"] == 1 - right
    assert told["accuracy"] == pytest.approx((3 * right + 1 - right) / 4)
    assert told["macro_accuracy"] == 0.5

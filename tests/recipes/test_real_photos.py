"""The main job on real photographs: score pairs, train on them, ask POPE's questions. A random model: the path counts, not the numbers."""

import json
import math
from pathlib import Path

import pytest
from datasets import Dataset

from mmalign.cli import main
from mmalign.models.contrastive import build_clip
from mmalign.worlds.tokenizer import train_tokenizer

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 48}
VISION = {**{key: value for key, value in TEXT.items() if key != "max_position_embeddings"}, "image_size": 28, "patch_size": 14}


def describe(objects: list[str]) -> str:
    return "There is a " + " and a ".join(objects) + "."


@pytest.fixture(scope="module")
def pairs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """True object lists of COCO photographs, against lists with one object exchanged."""
    entries = json.loads((shared_data / "photos" / "coco_objects.json").read_text())
    names = sorted({name for entry in entries for name in entry["objects"]})
    rows = []
    for entry in entries:
        absent = next(name for name in names if name not in entry["objects"])
        wrong = [absent, *entry["objects"][1:]]
        rows.append(
            {"id": entry["image"], "image": entry["image"], "prompt": "What is in the image?"}
            | {"chosen": describe(entry["objects"]), "rejected": describe(wrong)}
        )
    path = tmp_path_factory.mktemp("photos") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def clip_dir(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    train_tokenizer([json.loads(line)["chosen"] for line in pairs.read_text().splitlines()]).save_pretrained(folder)
    for part in build_clip({"projection_dim": 16, "text_config": TEXT, "vision_config": VISION}, tokenizer=str(folder), seed=0):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scored(shared_data: Path, tiny_llava_dir: Path, clip_dir: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores")
    models = ["--clip", str(clip_dir), "--mllm", str(tiny_llava_dir), "--image-root", str(shared_data / "photos" / "images")]
    assert main(["score-difficulty", str(pairs), *models, "--out", str(out)]) == 0
    return out / "scored.parquet"


def test_every_pair_is_scored_and_told_apart(scored: Path, pairs: Path) -> None:
    rows = Dataset.from_parquet(str(scored))
    ids = [json.loads(line)["id"] for line in pairs.read_text().splitlines()]
    assert rows["id"] == ids
    assert len(ids) >= 20
    assert not (scored.parent / "rejects.jsonl").exists()
    assert all(0.0 <= value <= 1.0 for value in rows["difficulty"])
    # Even a random model sees that photographs differ.
    for name in ("difficulty", "gap_contrastive", "gap_generative"):
        assert len(set(rows[name])) > len(ids) // 2, name


@pytest.mark.parametrize("weights", [["--reference", "cached"], ["--lora-rank", "4"]], ids=["full", "adapter"])
def test_train_and_evaluate(shared_data: Path, tiny_llava_dir: Path, scored: Path, tmp_path: Path, weights: list[str]) -> None:
    photos, aligned = shared_data / "photos", tmp_path / "aligned"
    data = ["--model", str(tiny_llava_dir), "--data", str(scored), "--image-root", str(photos / "images"), "--out", str(aligned)]
    steps = ["--max-steps", "4", "--batch-size", "4", "--learning-rate", "2e-3", "--logging-steps", "1", "--difficulty-mode", "paper"]
    assert main(["train", "preference", *data, *steps, *weights]) == 0
    log = [entry for entry in json.loads((aligned / "train_log.json").read_text()) if "loss" in entry]
    # The reference is the model itself, cached or with the adapter off: the first step has no margin yet.
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert log[-1]["rewards/margin"] > 0

    asked = ["--data", str(photos), "--model", str(aligned), "--max-new-tokens", "3", "--out", str(tmp_path / "results")]
    assert main(["evaluate", "pope", *asked]) == 0
    result = json.loads((tmp_path / "results" / "pope.json").read_text())
    files = [photos / f"mini_pope_{split}.jsonl" for split in ("adversarial", "popular", "random")]
    assert list(result["data"]) == [path.name for path in files]
    assert result["num_answers"] == sum(len(path.read_text().splitlines()) for path in files)
    answers = [json.loads(line) for line in (tmp_path / "results" / "pope_answers.jsonl").read_text().splitlines()]
    # An answer is yes unless it says no: the ratio follows from the saved answers.
    yes = [not {"No", "no", "not"} & set(row["response"].split(".")[0].replace(",", "").split(" ")) for row in answers]
    assert result["metrics"]["pope/yes_ratio"] == pytest.approx(sum(yes) / len(yes))
    assert "pope (official)" in (aligned / "README.md").read_text()

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


def test_score_train_evaluate(shared_data: Path, tiny_llava_dir: Path, clip_dir: Path, pairs: Path, tmp_path: Path) -> None:
    images, model, num_pairs = shared_data / "photos" / "images", str(tiny_llava_dir), len(pairs.read_text().splitlines())
    scores = ["--clip", str(clip_dir), "--mllm", model, "--image-root", str(images), "--out", str(tmp_path / "scores")]
    assert main(["score-difficulty", str(pairs), *scores]) == 0
    scored = Dataset.from_parquet(str(tmp_path / "scores" / "scored.parquet"))
    assert len(scored) == num_pairs >= 20
    assert all(0.0 <= value <= 1.0 for value in scored["difficulty"])
    assert len(set(scored["difficulty"])) > num_pairs // 2

    data = ["--data", str(tmp_path / "scores" / "scored.parquet"), "--image-root", str(images), "--reference", "cached"]
    steps = ["--max-steps", "3", "--batch-size", "4", "--learning-rate", "1e-3", "--logging-steps", "1", "--difficulty-mode", "paper"]
    assert main(["train", "preference", "--model", model, *data, *steps, "--out", str(tmp_path / "aligned")]) == 0
    log = [entry for entry in json.loads((tmp_path / "aligned" / "train_log.json").read_text()) if "loss" in entry]
    # The cached reference is the model itself: the first step has no margin yet.
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert log[-1]["rewards/margin"] > 0

    questions = shared_data / "photos" / "mini_pope_adversarial.jsonl"
    asked = ["--data", str(questions), "--images", str(images), "--model", str(tmp_path / "aligned"), "--max-new-tokens", "3"]
    assert main(["evaluate", "pope", *asked, "--out", str(tmp_path / "results")]) == 0
    result = json.loads((tmp_path / "results" / "pope.json").read_text())
    assert result["num_answers"] == len(questions.read_text().splitlines())
    assert 0.0 <= result["metrics"]["pope/accuracy"] <= 1.0
    assert "pope (official)" in (tmp_path / "aligned" / "README.md").read_text()

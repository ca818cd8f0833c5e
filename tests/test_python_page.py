"""The programs of docs/python.md run as they are written, in a folder with tiny models under the names that they use."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List
from datasets import Image as ImageFeature

import mmalign
from mmalign.models.load import load_mllm
from tests.conftest import REPOSITORY
from tests.data_files import chat_rows, save_rows
from tests.tiny_classifiers import CLASSES, save_tiny_clip
from tests.tiny_models import build_tiny_llava, pair_rows, random_image

PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL))
LEFT = {
    "Score pairs, and train on them": ["difficulty/scored.parquet", "aligned/adapter_model.safetensors"],
    "Choose pairs, and train a model that is in memory": ["ipo/model.safetensors"],
    "Measure hallucination": ["results/pope.json"],
    "Distil into a sparse student": ["sparse/model.safetensors", "d2s/model.safetensors"],
    "Train a classifier from few labels": ["classifier/classifier.json"],
    "Stay with TRL": ["trl/checkpoint-3/adapter_model.safetensors"],
}
TRL = "Stay with TRL"


def save(folder: Path, *, seed: int = 0) -> None:
    for part in build_tiny_llava(seed=seed):
        part.save_pretrained(folder)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader would stand: models by name, files of pairs, chats, photos and a benchmark."""
    save(tmp_path / "llava-hf" / "llava-1.5-7b-hf")
    save(tmp_path / "student", seed=1)
    clip = tmp_path / "openai" / "clip-vit-large-patch14-336"
    save_tiny_clip(clip, [f"a photo of a {name}." for name in CLASSES], max_positions=24)
    save_rows(tmp_path / "pairs.parquet", pair_rows(8))
    save_rows(tmp_path / "chats.parquet", chat_rows(8))
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES))})
    photos = {"image": [random_image(i) for i in range(40)], "label": [i % 3 for i in range(40)]}
    Dataset.from_dict(photos, features=features).to_parquet(tmp_path / "photos.parquet")
    questions = [{"question_id": i, "image": "a.png", "text": "Is there a dog?", "label": ("yes", "no")[i % 2]} for i in range(4)]
    for name in ("coco_pope", "val2014"):
        (tmp_path / name).mkdir()
    (tmp_path / "coco_pope" / "coco_pope_random.json").write_text("\n".join(map(json.dumps, questions)))
    random_image(0).save(tmp_path / "val2014" / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_six() -> None:
    assert list(PROGRAMS) == list(LEFT)
    assert PAGE.count("```python") == 6


@pytest.mark.parametrize("title", [pytest.param(title, marks=pytest.mark.slow if title == TRL else ()) for title in PROGRAMS])
def test_program(title: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if title == TRL:
        pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[benchmark]'")
    exec(compile(PROGRAMS[title], f"docs/python.md: {title}", "exec"), {"__name__": "__main__"})
    assert all((place / name).is_file() for name in LEFT[title])
    # What the last line of the program prints are numbers.
    assert re.search(r"\d", capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_trl_on_our_columns_is_our_training(place: Path) -> None:
    """Policy and reference are different random models, so that losses are far from log 2."""
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[benchmark]'")
    names: dict[str, Any] = {}
    exec(PROGRAMS[TRL].split("\nllava = ")[0], names)
    reference, clip = "llava-hf/llava-1.5-7b-hf", "openai/clip-vit-large-patch14-336"
    scored = mmalign.score_difficulty(pairs="pairs.parquet", clip=clip, mllm=reference, out="difficulty")
    assert scored is not None
    assert np.std(scored.dataset["difficulty"]) > 0.1
    steps: dict[str, Any] = {"learning_rate": 1e-6, "max_steps": 1, "logging_steps": 1}
    given: dict[str, Any] = {"model": "student", "reference": "cached", "reference_model": reference, "batch_size": 8, **steps}

    def train_trl(kind: type, data: Dataset) -> dict[str, float]:
        arguments = trl.DPOConfig(
            output_dir="trl", per_device_train_batch_size=8, max_length=None, bf16=False, use_cpu=True, remove_unused_columns=False,
            gradient_checkpointing=False, beta=0.1, report_to="none", save_strategy="no", disable_tqdm=True, **steps,
        )  # fmt: skip
        policy, processor = load_mllm("student", dtype="float32")
        trainer = kind(model=policy, ref_model=load_mllm(reference)[0], args=arguments, train_dataset=data, processing_class=processor)
        if trainer.precompute_ref_logps:
            trainer.ref_model = None
        trainer.train()
        found: dict[str, float] = trainer.state.log_history[0]
        return found

    # Where every pair has beta itself, TRL's own reference model says the same.
    rows = scored.dataset.cast_column("images", List(ImageFeature()))
    plain = rows.remove_columns("difficulty").add_column("difficulty", [1.0] * 8)
    live = train_trl(trl.DPOTrainer, rows)
    for data, expected, mode in ((rows, None, "paper"), (plain, live, "off")):
        ours = mmalign.train_preference(data=data, difficulty_mode=mode, out=mode, **given).metrics
        theirs = train_trl(names["DifficultyDPOTrainer"], data)
        assert abs(ours["loss"] - math.log(2)) > 0.03
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4)
        if expected is None:
            assert abs(theirs["loss"] - live["loss"]) > 0.01
        else:
            assert expected["loss"] == pytest.approx(ours["loss"], abs=1e-4)
            # Theirs have each pair's beta, ours the run's.
            assert theirs["rewards/margins"] == pytest.approx(ours["rewards/margin"], abs=1e-3)

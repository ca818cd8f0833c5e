"""The programs of docs/python.md run as they are written, in a folder with tiny models under the names that they use."""

import json
import re
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature

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
}


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


def test_there_are_five() -> None:
    assert list(PROGRAMS) == list(LEFT)
    assert PAGE.count("```python") == 5


@pytest.mark.parametrize("title", PROGRAMS)
def test_program(title: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PROGRAMS[title], f"docs/python.md: {title}", "exec"), {"__name__": "__main__"})
    assert all((place / name).is_file() for name in LEFT[title])
    # What the last line of the program prints are numbers.
    assert re.search(r"\d", capsys.readouterr().out.splitlines()[-1])

"""Data files and models that several commands train on."""

import json
from pathlib import Path

import pytest

from mmalign.cli import main
from tests.data_files import chat_rows, save_rows, scored_rows
from tests.tiny_models import QWEN3, build_tokenizer


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_llava_dir: Path) -> Path:
    return save_rows(tmp_path_factory.mktemp("pairs") / "pairs.parquet", scored_rows(8, reference=tiny_llava_dir))


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rows(tmp_path_factory.mktemp("chats") / "chats.parquet", chat_rows(8))


@pytest.fixture(scope="session")
def tiny_fastvlm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``mmalign compose`` makes of a convolutional tower, which has batch norms."""
    folder = tmp_path_factory.mktemp("fastvlm")
    tower = {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_050", "initializer_range": 0.02}
    for name, values in (("tower", tower), ("llm", QWEN3)):
        (folder / f"{name}.json").write_text(json.dumps(values))
    build_tokenizer().save_pretrained(folder / "tokenizer")
    halves = ["--vision", str(folder / "tower.json"), "--llm", str(folder / "llm.json"), "--tokenizer", str(folder / "tokenizer")]
    assert main(["compose", *halves, "--image-size", "64", "--out", str(folder / "model")]) == 0
    return folder / "model"

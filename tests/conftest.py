"""Shared fixtures: tiny real models, and the optional folder of real data."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Each file that a test loads would stay in the user's cache for ever. Workers and the programs that tests start share the folder.
if "HF_DATASETS_CACHE" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="mmalign-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import pytest
import torch

from tests.tiny_models import build_tiny_llava

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real photographs and benchmark files; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MMALIGN_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MMALIGN_SHARED_DATA")
    return folder


@pytest.fixture
def nltk_words(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let NLTK find tokenizer, tagger and WordNet in the shared data."""
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data"), *nltk.data.path])


@pytest.fixture(scope="session")
def tiny_llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random LLaVA of real classes (CLIP tower, Qwen3 text model) with its processor."""
    folder = tmp_path_factory.mktemp("tiny") / "llava"
    model, processor = build_tiny_llava()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

"""Where NLTK's data lie, for the tests that need them."""

from pathlib import Path

import pytest


@pytest.fixture
def nltk_words(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let NLTK find tokenizer, tagger and WordNet in the shared data."""
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data"), *nltk.data.path])

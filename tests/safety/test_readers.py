"""Damaged files: each reader refuses them with a message that says what is wrong, or reads what is left; it never falls over."""

import random
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from tests.safety.damage import damage_bytes, damage_json
from tests.safety.readers import READERS

# A broken line or checkpoint costs itself alone.
READ_WHAT_IS_LEFT = {"converter jsonl", "manifest"}
TEXT = {".json", ".jsonl", ".partial"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def read_damaged(name: str, seed: int, folder: Path) -> str | None:
    """Damage one file of a sample and read it.

    Returns:
        The message it was refused with; None where it was read.
    """
    reader, rng = READERS[name], random.Random(f"{name} {seed}")
    folder.mkdir(parents=True)
    path = rng.choice(reader.write(folder))
    data = path.read_bytes()
    path.write_bytes(damage_json(data.decode(), rng) if path.suffix in TEXT else damage_bytes(data, rng))
    message = None
    try:
        reader.read(folder)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    assert message is None or message.strip(), "refused without a word"
    return message


@pytest.mark.parametrize("name", list(READERS))
def test_sound_files_are_read(name: str, tmp_path: Path) -> None:
    """Else the tests below would say nothing: they take any refusal."""
    (tmp_path / "sample").mkdir()
    READERS[name].write(tmp_path / "sample")
    READERS[name].read(tmp_path / "sample")


@pytest.mark.parametrize("name", list(READERS))
def test_damaged_files_are_refused_or_read(name: str, tmp_path: Path) -> None:
    for seed in range(4):
        read_damaged(name, seed, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(READERS))
def test_a_thousand_damaged_files(name: str, tmp_path: Path) -> None:
    messages = [read_damaged(name, seed, tmp_path / str(seed)) for seed in range(1000 if name != "report" else 200)]
    refused = [message for message in messages if message is not None]
    # The damage does reach the reader.
    assert len(refused) > len(messages) // 20 or name in READ_WHAT_IS_LEFT

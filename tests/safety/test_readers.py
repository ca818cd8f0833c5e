"""Damaged files: each reader refuses them with a message that says what is wrong. What only costs a line or a checkpoint is named."""

import random
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from mmalign.errors import UserError
from tests.safety.damage import Damage, cut_anywhere, damages_of
from tests.safety.readers import READERS


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("name", list(READERS))
def test_sound_files_are_read(name: str, tmp_path: Path) -> None:
    """Else the tests below would say nothing: they take any refusal."""
    (tmp_path / "sample").mkdir()
    READERS[name].write(tmp_path / "sample")
    READERS[name].read(tmp_path / "sample")


def refuse(name: str, number: int, damage: Damage, folder: Path) -> None:
    """Damage one file of a sample and read it."""
    folder.mkdir(parents=True)
    path = READERS[name].write(folder)[number]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=".") as refused:
        READERS[name].read(folder)
    assert path.name in str(refused.value) or READERS[name].unnamed, refused.value


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.refuses])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    for number, path in enumerate(READERS[name].write(tmp_path / "sample")):
        for kind, damage in damages_of(path).items():
            if kind not in READERS[name].harmless:
                refuse(name, number, damage, tmp_path / f"{number} {kind}")


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if not reader.refuses])
def test_what_is_left_is_read(name: str, tmp_path: Path) -> None:
    """A broken line or checkpoint costs itself alone."""
    (tmp_path / "sample").mkdir()
    (path,) = READERS[name].write(tmp_path / "sample")
    sound = path.read_bytes()
    for damage in damages_of(path).values():
        path.write_bytes(damage(sound))
        assert READERS[name].read(tmp_path / "sample")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.refuses])
def test_cuts_anywhere_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    paths = READERS[name].write(tmp_path / "sample")
    whole = [number for number, path in enumerate(paths) if path.suffix in (".parquet", ".json", ".png") and "cut" in damages_of(path)]
    for seed in range(100 if whole else 0):
        rng = random.Random(seed)
        refuse(name, rng.choice(whole), lambda data, rng=rng: cut_anywhere(data, rng), tmp_path / str(seed))

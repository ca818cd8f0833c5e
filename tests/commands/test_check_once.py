"""Rows are checked once for the same data, processor, options and images; what changed is checked again."""

import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.data import verdicts
from mmalign.methods.sft import SupervisedMethod
from tests.commands.training import read_rejects, train
from tests.data_files import chat_rows, save_by_path, save_rows
from tests.tiny_models import pair_rows, random_image

SKIPPED = "these data and images were checked for this processor before"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where verdicts are kept."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "mmalign_checked"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that were checked since the list was last emptied."""
    seen: list[int] = []
    original = SupervisedMethod.check

    def check(self: SupervisedMethod, raw: Any, *, index: int) -> None:
        seen.append(index)
        original(self, raw, index=index)

    monkeypatch.setattr(SupervisedMethod, "check", check)
    return seen


def test_a_resumed_run_and_another_one_skip_the_check(
    tiny_llava_dir: Path, tmp_path: Path, checks: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = chat_rows(10)
    rows[3]["messages"] = rows[3]["messages"][:1]
    data = save_rows(tmp_path / "chats.parquet", rows)
    words = ["--max-reject-share", "0.2"]
    assert train(tiny_llava_dir, data, tmp_path / "first", *words, kind="sft") == 0
    assert SKIPPED not in capsys.readouterr().out
    assert checks == list(range(10))
    written = (tmp_path / "first" / "rejects.jsonl").read_bytes()
    for out, more in (("first", ["--check-workers", "0"]), ("second", ["--learning-rate", "1e-4", "--seed", "3", "--batch-size", "2"])):
        checks.clear()
        assert train(tiny_llava_dir, data, tmp_path / out, *words, *more, kind="sft") == 0
        told = capsys.readouterr().out
        assert told.count(f"skipping the check of 10 rows: {SKIPPED}\n") == 1
        assert f"on {9} of {10} rows" in told
        assert not checks
        assert (tmp_path / out / "rejects.jsonl").read_bytes() == written
    # The share that a run tolerates is its own.
    assert train(tiny_llava_dir, data, tmp_path / "strict", kind="sft") == 2
    assert "1 of 10 rows are broken, more than the tolerated share of 5.0%" in capsys.readouterr().err


def test_other_options_templates_data_and_code_are_checked_again(
    tiny_llava_dir: Path, tmp_path: Path, checks: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = save_rows(tmp_path / "chats.parquet", chat_rows(6))
    other_rows = save_rows(tmp_path / "other.parquet", chat_rows(7))
    model, processor = AutoModelForImageTextToText.from_pretrained(tiny_llava_dir), AutoProcessor.from_pretrained(tiny_llava_dir)
    folders = {name: tmp_path / name for name in ("template", "pixels")}
    for folder in folders.values():
        model.save_pretrained(folder)
    processor.image_processor.do_normalize = False
    processor.save_pretrained(folders["pixels"])
    processor = AutoProcessor.from_pretrained(tiny_llava_dir)
    processor.chat_template = processor.chat_template.replace("assistant", "helper", 1) + " "
    processor.save_pretrained(folders["template"])

    def checked(name: str, model: Path = tiny_llava_dir, data: Path = data, *words: str) -> int:
        checks.clear()
        assert train(model, data, tmp_path / "out" / name, *words, kind="sft") == 0
        return len(checks)

    assert [checked("one"), checked("two")] == [6, 0]
    assert checked("length", tiny_llava_dir, data, "--max-length", "500") == 6
    assert checked("end", tiny_llava_dir, data, "--answer-end", "template") == 6
    assert checked("root", tiny_llava_dir, data, "--image-root", str(tmp_path)) == 6
    assert checked("template", folders["template"]) == 6
    assert checked("pixels", folders["pixels"]) == 6
    assert checked("rows", tiny_llava_dir, other_rows) == 7
    assert checked("three") == 0
    monkeypatch.setattr(verdicts, "_describe_code", lambda: {"mmalign": "another"})
    assert checked("code") == 6


def test_an_image_that_was_changed_lost_or_found_is_checked_again(
    tiny_llava_dir: Path, tmp_path: Path, checks: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_by_path(tmp_path / "photos", chat_rows(8))
    image = sorted(data.parent.glob("*.png"))[0]
    good, runs = image.read_bytes(), 0

    def train_again() -> dict[str, str]:
        nonlocal runs
        runs += 1
        out = tmp_path / "out" / str(runs)
        checks.clear()
        words = ["--image-root", str(data.parent), "--max-reject-share", "0.5"]
        assert train(tiny_llava_dir, data, out, *words, kind="sft") == 0
        assert len(checks) == (0 if SKIPPED in capsys.readouterr().out else 8)
        return read_rejects(out) if (out / "rejects.jsonl").is_file() else {}

    assert train_again() == {}
    assert train_again() == {}
    assert not checks
    image.write_bytes(b"x" * len(good))
    os.utime(image, ns=(1, 1))
    (reason,) = train_again().values()
    assert "is not an image that Pillow can read" in reason
    (reason,) = train_again().values()
    assert not checks
    image.unlink()
    (reason,) = train_again().values()
    assert reason == f"image not found: {image}"
    random_image(5).save(image)
    assert train_again() == {}
    assert len(checks) == 8


def test_pairs_are_kept_by_what_objectives_read(
    tiny_llava_dir: Path, tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "score_chosen": 1.0, "score_rejected": 0.0} for row in pair_rows(6)]
    data = save_rows(tmp_path / "pairs.parquet", rows)
    skipped = []
    for i, objective in enumerate(["dpo", "ipo", "madpo"]):
        assert train(tiny_llava_dir, data, tmp_path / f"out{i}", "--objective", objective, "--reference", "copy") == 0
        skipped.append(SKIPPED in capsys.readouterr().out)
    assert skipped == [False, True, False]
    assert len(list(place.iterdir())) == 2


def test_damaged_verdicts_are_written_anew(
    tiny_llava_dir: Path, tmp_path: Path, place: Path, checks: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_rows(tmp_path / "chats.parquet", chat_rows(6))
    assert train(tiny_llava_dir, data, tmp_path / "one", kind="sft") == 0
    (path,) = place.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:9])
    assert train(tiny_llava_dir, data, tmp_path / "two", kind="sft") == 0
    assert len(checks) == 12
    assert path.read_bytes() == whole
    # A place that can't be written costs time and nothing else.
    path.unlink()
    place.rmdir()
    place.write_text("")
    assert train(tiny_llava_dir, data, tmp_path / "three", kind="sft") == 0
    assert "the next run will check the rows again, because verdicts can't be kept in" in capsys.readouterr().out

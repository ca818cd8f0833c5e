"""Files that are there whole or not at all, and folders that belong to one run."""

import errno
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmalign.errors import UserError
from mmalign.files import claim, claimed, open_to_readers, whole, write_whole, writing


def test_a_file_is_replaced_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "new"


def test_weights_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for name in ("model.safetensors", "notes.txt"):
            (tmp_path / name).touch(mode=0o600)
        open_to_readers(tmp_path)
        with whole(tmp_path / "cache.safetensors") as partial:
            save_file({"a": torch.zeros(1)}, partial)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"model.safetensors": 0o640, "cache.safetensors": 0o640, "notes.txt": 0o600}


def write_half(path: Path, error: type[BaseException]) -> None:
    with whole(path) as partial:
        partial.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error):
        write_half(path, error)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("write", [whole, writing])
def test_a_full_disk_is_told_with_what_was_written(write: Any, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, SafetensorError("I/O error: No space left on device")):
        with (
            pytest.raises(OSError, match=f"No space left on device.*{tmp_path}/a|{tmp_path}/a can't be saved: .*No space left"),
            write(tmp_path / "a"),
        ):
            raise error


def test_a_refused_connection_is_no_fault_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError, match=r"^\[Errno \d+\] Connection refused$"), writing(tmp_path / "a"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def make_half(path: Path) -> None:
    with whole(path) as partial:
        (partial / "eval").mkdir(parents=True)
        raise ZeroDivisionError


def test_a_folder_is_there_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "world"
    with pytest.raises(ZeroDivisionError):
        make_half(path)
    assert not list(tmp_path.iterdir())
    path.mkdir()
    with whole(path) as partial:
        (partial / "eval").mkdir(parents=True)
    assert [file.relative_to(tmp_path) for file in tmp_path.rglob("*")] == [Path("world"), Path("world/eval")]


def write_often(path: Path, letter: str) -> None:
    for _ in range(50):
        write_whole(path, letter * 10_000)


@pytest.mark.parametrize("name", [".", "../link"])
def test_an_empty_folder_is_filled_whatever_it_is_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    with whole(Path(name)) as partial:
        partial.mkdir()
        (partial / "world.json").write_text("{}")
    assert (tmp_path / "empty" / "world.json").read_text() == "{}"


def test_many_writers_leave_the_whole_text_of_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    processes = [multiprocessing.get_context("spawn").Process(target=write_often, args=(path, letter)) for letter in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert path.read_text() in ("a" * 10_000, "b" * 10_000)
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_belongs_to_one_record(tmp_path: Path) -> None:
    record = tmp_path / "out" / "run.json"
    claim(record, {"seed": 1, "data": Path("a"), "sizes": (1, 2)}, what="another run")
    before = record.read_bytes()
    claim(record, {"data": "a", "sizes": [1, 2], "seed": 1}, what="another run")
    assert record.read_bytes() == before
    for other, told in (
        ({"seed": 2, "data": "a", "sizes": [1, 2]}, "its seed is 1, not 2"),
        ({"seed": 1, "data": "a"}, r"its sizes is \[1, 2\], not None"),
        ({"seed": 1, "data": "a", "sizes": [1, 2], "lists": True}, "its lists is None, not True"),
    ):
        with pytest.raises(UserError, match=f"^{tmp_path}/out holds another run: {told}; choose another --out$"):
            claim(record, other, what="another run")
    record.write_text("{")
    with pytest.raises(UserError, match="damaged or no JSON"):
        claim(record, {"seed": 1}, what="another run")


def refuse(folder: Path, width: str, *, leave: str | None = None, shared: bool = False) -> None:
    with claimed(folder / "run.json", {"width": width}, what="another run", shared=shared):
        (folder / "shards").mkdir(exist_ok=True)
        if leave is not None:
            (folder / "shards" / leave).touch()
        raise UserError(f"no {width}")


def test_a_folder_is_free_where_a_block_was_refused_before_it_left_a_file(tmp_path: Path) -> None:
    for width in ("a", "b"):
        with pytest.raises(UserError, match=f"no {width}"):
            refuse(tmp_path, width)
    for name, case in {"work": {"leave": "0.jsonl"}, "others": {"shared": True}}.items():
        with pytest.raises(UserError, match="no a"):
            refuse(tmp_path / name, "a", **case)
        with pytest.raises(UserError, match="holds another run: its width is 'a', not 'b'"):
            refuse(tmp_path / name, "b")

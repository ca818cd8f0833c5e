"""Files: JSON that others wrote, hashes, files that are there whole or not at all, and folders that belong to one run."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmalign.errors import UserError

RUN_FILE = "mmalign_run.json"
"""What a training run leaves beside its model: what it was made of."""
COMBINATION_FILE = "combination.json"
"""What a combination of adapters leaves beside the adapter that it is."""
SCORED, SUMMARY, SCORING = "scored.parquet", "difficulty.json", "scoring.json"
"""What scoring leaves: the pairs, the statistics of their scores, and what they were made with."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_WITHOUT_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def not_utf8(path: Path, error: UnicodeDecodeError) -> UserError:
    """What to raise of a text file in another encoding."""
    return UserError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}; save it as UTF-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If it is missing, no UTF-8 text, or no JSON.
    """
    if not path.is_file():
        raise UserError(f"file not found: {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    # JSON's and Unicode's errors are ValueErrors, and so is that of a number with too many digits.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises as ``read_json``, and if it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def list_files(folder: Path, *patterns: str) -> list[Path]:
    """List the files of a folder that match any of the patterns, but for hidden ones, such as macOS' ``._NAME`` beside NAME."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(".")})


def find_run_file(source: str) -> Path | None:
    """Find the record of the run that a model is of: in its folder, or above it (OUT/checkpoints/checkpoint-N, OUT/slow)."""
    folder = Path(source).resolve()
    places = (folder, folder.parent, folder.parent.parent) if folder.is_dir() else ()
    return next((place / RUN_FILE for place in places if (place / RUN_FILE).is_file()), None)


@contextmanager
def expected_form(what: str | Path) -> Iterator[None]:
    """Name the file where its fields are missing or of another type; for readers of files that mmalign did not write.

    Args:
        what: The file, or what else is read.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(f"{what} is not of the form expected: {error} is missing") from error
    except (AttributeError, IndexError, OverflowError, RecursionError, TypeError) as error:
        raise UserError(f"{what} is not of the form expected: {error}") from error


def hash_file(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Name the file or folder where writing it fails: a full disk says that it is full and not where.

    Raises:
        OSError: As what fails does, safetensors' own errors too.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{place} can't be saved: {error}") from error
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(place)
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file or folder beside ``path``, and rename it to ``path`` when the block ends without an error.

    Each process has a temporary name of its own, so that several may write ``path`` at once, on one machine or on several. An error removes
    what was written; only a kill leaves it behind, with ``.partial`` at the end of its name.

    Args:
        path: A file, which is replaced if it is there; or a folder, which may be there and empty.
    """
    if path.is_dir():
        # A link is no folder to rename to, and . has no name.
        path = path.resolve()
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    _remove(partial)
    try:
        with writing(path):
            yield partial
            if partial.is_file():
                open_to_readers(partial)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            partial.rename(path)
    except BaseException:
        _remove(partial)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for a block that reads, changes and writes one of its files; other processes that ask for it wait."""
    held = os.open(folder, os.O_RDONLY)
    try:
        lock(held)
        yield
    finally:
        os.close(held)


def lock(held: int, *, wait: bool = True) -> bool:
    """Lock an open file or folder against other processes until it is closed.

    File systems without locks lock nothing: NFS has none for folders.

    Args:
        held: Its descriptor.
        wait: Whether to wait for the process that has it.

    Returns:
        Whether no other process has it.
    """
    try:
        fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    return True


def open_to_readers(path: Path) -> None:
    """Give a file, or the weights in a folder, the mode of any new file: safetensors writes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    for file in [path] if path.is_file() else path.glob("*.safetensors"):
        file.chmod(0o666 & ~mask)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def claim(path: Path, record: Mapping[str, Any], *, what: str) -> None:
    """Write the record of what a folder belongs to, or check that the one that is there is the same.

    Args:
        path: JSON file of the record; its folder is made.
        record: Everything that decides what the folder will hold. Paths are written as text, tuples as lists.
        what: What a folder with another record holds, such as ``another run``.

    Raises:
        ValueError: If the folder has another record; the message holds the first value that differs, and this one's.
    """
    text = json.dumps(record, indent=1, sort_keys=True, default=str)
    if path.is_file():
        check_same(path.parent, read_json_object(path), json.loads(text), what=what)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text + "\n")


@contextmanager
def claimed(path: Path, record: Mapping[str, Any], *, what: str, shared: bool = False) -> Iterator[None]:
    """Claim a folder for a block. One that is refused before it leaves any file gives the folder free: a mended command has another record.

    Args:
        path: As of ``claim``.
        record: As of ``claim``.
        what: As of ``claim``.
        shared: Whether other processes work in the folder: they may have nothing on disk yet, and keep the claim.

    Raises:
        ValueError: As ``claim`` does.
    """
    with freed_if_refused(path, kept=lambda: shared or any(other.is_file() and other != path for other in path.parent.rglob("*"))):
        claim(path, record, what=what)
        yield


@contextmanager
def freed_if_refused(record: Path, *more: Path, kept: Callable[[], bool]) -> Iterator[None]:
    """Remove the record of what a folder belongs to, and ``more``, where the block that wrote them is refused, unless it must be kept."""
    held = record.is_file()
    try:
        yield
    except UserError:
        if not held and not kept():
            for path in (record, *more):
                path.unlink(missing_ok=True)
        raise


def check_same(
    where: Path, held: Mapping[str, Any], wanted: Mapping[str, Any], *, what: str, next_step: str = "choose another --out"
) -> None:
    """Check a record as ``claim`` does, for one that is written elsewhere.

    Raises:
        ValueError: If a value differs.
    """
    for key in {**held, **wanted}:
        if held.get(key) != wanted.get(key):
            raise UserError(f"{where} holds {what}: its {key} is {held.get(key)!r}, not {wanted.get(key)!r}; {next_step}")

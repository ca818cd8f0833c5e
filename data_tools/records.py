"""Records of a data file one by one, so that a file of any size takes the same memory."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.data.datasets import find_data_files
from mmalign.data.git_lfs import refuse_pointer
from mmalign.errors import UserError

# Characters read at once from a JSON array, and rows at once from Parquet (with their images, which may be megabytes each).
JSON_CHUNK = 1 << 20
PARQUET_ROWS = 32


class Record(NamedTuple):
    """One record, or the reason why it can't be read."""

    where: str
    value: dict[str, Any]
    fault: str | None = None


def list_files(sources: list[Path]) -> list[Path]:
    """List the data files among files and folders, in order; folders are read as those of training are.

    Raises:
        ValueError: If a source is missing, holds no data or several splits, or a file is a pointer of Git LFS.
    """
    files = [file for source in sources for file in find_data_files(source)]
    if not files:
        raise UserError(f"no files given; name one or more {', '.join(_READERS)} files, or folders of them")
    for file in files:
        refuse_pointer(file)
    return files


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a JSON, JSONL or Parquet file.

    A broken line of JSONL costs that line. A JSON array is one value, so damage ends the file with an error.

    Raises:
        ValueError: If a JSON array or a Parquet file is damaged; the message says where.
    """
    return _READERS[path.suffix.lower()](path)


def _read_lines(path: Path) -> Iterator[Record]:
    # As bytes, so that a line that is no UTF-8 costs itself; some programs put a byte-order mark before the first.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                yield _checked(where, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")))
            except UnicodeDecodeError as error:
                yield Record(where, {}, f"not UTF-8: {error}")
            except (json.JSONDecodeError, RecursionError) as error:
                yield Record(where, {}, f"not JSON: {error}")


def _read_json(path: Path) -> Iterator[Record]:
    opening = _opening(path)
    if opening is None:
        # Files named .json that hold one object a line are common.
        yield from _read_lines(path)
        return
    with path.open(encoding="utf-8-sig") as file:
        try:
            while file.read(1) != opening:
                pass
            for number, (key, value) in enumerate(_items(file, path, keyed=opening == "{")):
                if key is None:
                    yield _checked(f"{path.name}[{number}]", value)
                else:
                    yield Record(f"{path.name}[{key}]", {"key": key, "items": value})
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: {error}") from error


def _opening(path: Path) -> str | None:
    """The bracket of a file that is one JSON array, or one object over several lines; None where each line is a value."""
    with path.open("rb") as raw:
        # A byte-order mark may stand before the first bracket.
        start = raw.read(256).removeprefix(codecs.BOM_UTF8).lstrip()
        if start.startswith(b"["):
            return "["
        raw.seek(0)
        first = next((line for line in raw if line.removeprefix(codecs.BOM_UTF8).strip()), b"").removeprefix(codecs.BOM_UTF8).strip()
    return "{" if first == b"{" else None


def _items(file: Any, path: Path, *, keyed: bool) -> Iterator[tuple[str | None, Any]]:
    """Items of a JSON array or object whose bracket has been read: decoded one after another from a window of the file."""
    decoder = json.JSONDecoder()
    text, position, count, chunk = "", 0, 0, JSON_CHUNK
    while True:
        position = _skip(text, position, " ,")
        if position < len(text) and text[position] == ("}" if keyed else "]"):
            return
        try:
            key, start = _key(decoder, text, position) if keyed else (None, position)
            if start == len(text):
                raise json.JSONDecodeError("nothing left", text, start)
            value, end = decoder.raw_decode(text, start)
            # A number or word at the end of the window may go on in the next one.
            if end == len(text) and text[start] not in '{["':
                raise json.JSONDecodeError("may go on", text, start)
        except RecursionError as error:
            raise UserError(f"{path} is nested too deeply after {count} records") from error
        except json.JSONDecodeError as error:
            more = file.read(chunk)
            if not more:
                raise UserError(f"{path} is cut off or damaged after {count} records: {error}") from error
            text, position = text[position:] + more, 0
            # Doubled, so that one huge record is not decoded from its start again for every megabyte.
            chunk *= 2
            continue
        position, chunk, count = end, JSON_CHUNK, count + 1
        yield key, value


def _key(decoder: json.JSONDecoder, text: str, position: int) -> tuple[str, int]:
    """The key of an object's item, and where its value starts."""
    key, end = decoder.raw_decode(text, position)
    colon = _skip(text, end, "")
    if not isinstance(key, str) or text[colon : colon + 1] != ":":
        raise json.JSONDecodeError("expected a key and a colon", text, position)
    return key, _skip(text, colon + 1, "")


def _skip(text: str, position: int, also: str) -> int:
    """The next place that holds no space and none of these."""
    while position < len(text) and (text[position].isspace() or text[position] in also):
        position += 1
    return position


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    number = 0
    try:
        # Without pre_buffer, a row group of a gigabyte is not held as a whole.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for value in batch.to_pylist():
                    yield Record(f"{path.name}[{number}]", value)
                    number += 1
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as Parquet after {number} rows: {error}") from error


def _checked(where: str, value: Any) -> Record:
    if not isinstance(value, dict):
        return Record(where, {}, f"record is a {type(value).__name__}; expected an object")
    return Record(where, value)


_READERS = {".parquet": _read_parquet, ".json": _read_json, ".jsonl": _read_lines}

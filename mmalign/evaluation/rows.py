"""Rows of files that others wrote: JSON lines, a JSON array or object, tables; replies of an endpoint as they were sent."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mmalign.data.git_lfs import refuse_pointer
from mmalign.errors import UserError
from mmalign.evaluation.parquet import read_table
from mmalign.evaluation.spreadsheet import read_workbook
from mmalign.files import not_utf8

# Reasons for which servers say that a reply ended at its longest length; whatever else they say, it ended by itself.
_LIMITS = {"length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens"}
# Fields in which servers send reasoning apart from the reply.
REASONING_FIELDS = ("reasoning_content", "reasoning")
# What packed files begin with.
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip archive or a workbook", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
# Of a cell of a table: an answer with its reasoning may be longer than the csv module's own limit.
_LONGEST_CELL = 1 << 24


def read_text(path: Path) -> str:
    """Read UTF-8, with or without the mark that some editors put before it.

    Raises:
        ValueError: If the file is missing, a Git LFS pointer, or of another encoding.
    """
    if not path.is_file():
        raise UserError(f"file not found: {path}")
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        packed = next((kind for start, kind in _PACKED.items() if error.object.startswith(start)), None)
        if packed is not None:
            raise UserError(f"{path} is no text but {packed}: unpack it, or name it by its kind (.xlsx)") from error
        raise not_utf8(path, error) from error


class Row(dict[str, Any]):
    """An object of a file: a field that is asked for and not there is a user's error, told with its place."""

    def __init__(self, fields: Mapping[str, Any], place: str) -> None:
        """Take the fields; ``place`` is the file and where in it."""
        super().__init__(fields)
        self.place = place

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.place} has no {name}; it has {', '.join(self) or 'nothing'}")


def read_rows(path: Path) -> list[Row]:
    """Read a benchmark's own rows: ``read_records`` of objects, one or more.

    Raises:
        ValueError: As ``read_records``, and if there are none, or one is no object.
    """
    records = read_records(path)
    if not records:
        raise UserError(f"{path} holds no rows")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise UserError(f"{path}, record {number} is {json.dumps(record)[:40]}; expected an object")
    return [Row(record, f"{path}, record {number}") for number, record in enumerate(records, start=1)]


def read_csv(path: Path) -> list[Row]:
    """Read values separated by commas, or by tabs (``.tsv``), under a line of names; columns without a name are left out.

    Raises:
        ValueError: As ``read_text``, and if the file is no CSV or holds no rows, or a row is shorter than the line of names.
    """
    csv.field_size_limit(_LONGEST_CELL)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True, delimiter=separator))
    except csv.Error as error:
        raise UserError(f"{path} can't be read as CSV: {error}") from error
    if not rows:
        raise UserError(f"{path} holds no rows")
    if short := next((i for i, row in enumerate(rows, start=1) if None in row.values()), None):
        raise UserError(f"{path}, row {short} has fewer values than the first line has names: {', '.join(filter(None, rows[0]))}")
    return [Row({key: value for key, value in row.items() if key}, f"{path}, row {i}") for i, row in enumerate(rows, start=1)]


def drop_cut_line(file: BinaryIO) -> bytes:
    """Read lines that were appended as they came; a last one that a kill cut off is dropped, from the file too."""
    data = file.read()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        file.truncate(end)
    return data[:end]


def read_jsonl(path: Path) -> list[Row]:
    """Read JSON lines.

    Raises:
        ValueError: If the file is missing or not UTF-8, or a line is no JSON object; the message holds the line's number.
    """
    return _parse_lines(read_text(path), path)


def _parse_lines(text: str, path: Path) -> list[Row]:
    rows = []
    # Not splitlines: an answer may hold characters that it takes for line ends, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: {error}; expected one JSON object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is {line.strip()[:40]}; expected one JSON object a line")
        rows.append(Row(row, f"{path}, line {number}"))
    return rows


def read_records(path: Path) -> list[Any]:
    """Read a JSON array, JSON lines, one JSON object over several lines, or a table (``.parquet``, ``.csv``, ``.tsv``, ``.xlsx``).

    The benchmarks' ``.json`` files are any of the first three.

    Raises:
        ValueError: If the file is missing or is none of them.
    """
    if path.suffix.lower() == ".parquet":
        return read_table(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return list(read_csv(path))
    if path.suffix.lower() == ".xlsx" and path.is_file():
        return list(read_workbook(path))
    text = read_text(path)
    start = text[:64].lstrip()
    if start.startswith("["):
        try:
            records: list[Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: {error}") from error
        return records
    # A line that opens an object and does not close it: one object, written with indents.
    if start.startswith("{") and not text.lstrip().partition("\n")[0].rstrip().endswith("}"):
        try:
            return [json.loads(text)]
        except (ValueError, RecursionError):
            pass
    return _parse_lines(text, path)


class Reply(NamedTuple):
    """What a server sent: the reply, the reasoning that it sent apart, and whether the reply ended at its longest length."""

    content: str | None
    reasoning: str | None
    at_limit: bool | None


def read_completion(body: Any) -> Reply:
    """Read the first choice of a chat completion. The content may be a text, parts (text and thinking), or null.

    Raises:
        ValueError: If it has none, or that is an error.
    """
    choices = body.get("choices") if isinstance(body, Mapping) else None
    choice = choices[0] if isinstance(choices, Sequence) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(message, Mapping):
        raise UserError("it has no choice with a message")
    if choice.get("error"):
        raise UserError(f"its choice is an error: {json.dumps(choice['error'])[:200]}")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping) and part.get("type") == "text")
    reasoning = next((message[name] for name in REASONING_FIELDS if isinstance(message.get(name), str)), None)
    return Reply(content if isinstance(content, str) else None, reasoning, reads_limit(choice))


def flatten_completion(row: Any) -> Any:
    """Turn a chat completion, or a line of a batch's output (``custom_id``, ``response.body``), into a row; leave others as they are.

    The id of a completion is the endpoint's own, and left out: what it belongs to is told by its place, or by ``custom_id``.
    """
    if not isinstance(row, Mapping):
        return row
    outer = row.get("response")
    body = outer.get("body") if isinstance(outer, Mapping) else row
    if not (isinstance(body, Mapping) and isinstance(body.get("choices"), Sequence) and body["choices"]):
        return row
    reply = read_completion(body)
    named = {"id": str(row["custom_id"])} if "custom_id" in row else {}
    apart = {"reasoning_content": reply.reasoning} if reply.reasoning else {}
    ended = {} if reply.at_limit is None else {"ended": not reply.at_limit}
    return {**named, "response": reply.content, **apart, **ended}


def reads_limit(row: Mapping[str, Any]) -> bool | None:
    """Whether a row says that its text ended at the longest length allowed; None where it does not say."""
    if isinstance(row.get("ended"), bool):
        return not row["ended"]
    reason = row.get("finish_reason", row.get("stop_reason"))
    return reason.lower() in _LIMITS if isinstance(reason, str) else None

"""Pairs to Parquet shards that ``datasets`` reads with their images, written in small groups of rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.pair_sets import Pair
from mmalign.data.images import resolve_image_path
from mmalign.data.rows import PairRow, read_pair
from mmalign.errors import UserError

# Rows held before they are written: with images of a few hundred kilobytes, some tens of megabytes.
GROUP_ROWS = 100
TEXT_FIELDS = ("prompt", "chosen", "rejected")


def image_cell(value: Any, *, root: Path | None, embed: bool) -> dict[str, Any]:
    """Write an image of a record as ``datasets`` does: bytes, or a path that stays relative to the image root.

    Args:
        value: Bytes, a path, or a dict of them.
        root: Folder that paths start from.
        embed: Whether to put the bytes of the file in the place of its path.
    """
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return {"bytes": value["bytes"], "path": value.get("path")}
        value = value["path"]
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if embed:
        return {"bytes": resolve_image_path(value, root=root).read_bytes(), "path": str(value)}
    return {"bytes": None, "path": str(value)}


def checked_pair(pair: Pair, images: Sequence[Any]) -> PairRow:
    """Check a pair as training will, with its images decoded already.

    Raises:
        ValueError: With the reason why the pair can't be used.
    """
    raw = {"id": pair.id, "images": list(images), "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    try:
        return read_pair({**raw, "source": pair.source}, index=0)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"prompt, chosen or rejected is not in one of TRL's forms: {error!r}") from error


def text_form(value: Any) -> str:
    """Tell which of TRL's forms a text has: ``text``, ``messages``, or messages whose content is in ``parts``."""
    if isinstance(value, str):
        return "text"
    return "parts" if any(isinstance(message["content"], list) for message in value) else "messages"


def check_unicode(*values: Any) -> None:
    """Look for halves of surrogate pairs, which JSON can write and no file of text can hold.

    Raises:
        ValueError: With the place of the first.
    """
    text = json.dumps(values, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(0, error.start - 20) : error.start]
        raise UserError(f"half of a surrogate pair, {text[error.start]!a}, stands after {before!a}; expected Unicode text") from error


class PairWriter:
    """Writes ``pairs-00000.parquet`` and so on. All rows have the form of the first, because a column has one type."""

    def __init__(self, folder: Path, *, shard_rows: int) -> None:
        """Write to ``folder``, at most ``shard_rows`` rows a file."""
        if shard_rows < 1:
            raise UserError(f"shard_rows is {shard_rows}; expected at least 1")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.shard_rows = shard_rows
        self.num_rows = 0
        self.forms: dict[str, str] = {}
        self._schema: Any = None
        self._file: Any = None
        self._buffer: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row with id, source, images (cells), prompt, chosen and rejected.

        Raises:
            ValueError: If a text has another form than the first row's, or holds what is no text.
        """
        check_unicode([row[name] for name in ("id", *TEXT_FIELDS, "source")], [cell["path"] for cell in row["images"]])
        forms = {name: text_form(row[name]) for name in TEXT_FIELDS}
        if not self.forms:
            self.forms = forms
            self._schema = _schema(forms)
        for name, form in forms.items():
            if form != self.forms[name]:
                raise UserError(f"{name} is {form}, where the first row's is {self.forms[name]}; convert the two kinds apart")
        self._buffer.append(row)
        self.num_rows += 1
        if len(self._buffer) == GROUP_ROWS or self.num_rows % self.shard_rows == 0:
            self._flush()
        if self.num_rows % self.shard_rows == 0:
            self._close_file()

    def close(self) -> None:
        """Write what is held."""
        self._flush()
        self._close_file()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._buffer:
            return
        if self._file is None:
            number = (self.num_rows - 1) // self.shard_rows
            self._file = pq.ParquetWriter(self.folder / f"pairs-{number:05d}.parquet", self._schema)
        self._file.write_table(pa.Table.from_pylist(self._buffer, schema=self._schema))
        self._buffer = []

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _schema(forms: Mapping[str, str]) -> Any:
    from datasets import Features, Image, List, Value

    text = Value("string")
    part = {"type": text, "text": text}
    types = {
        "text": text,
        "messages": List({"role": text, "content": text}),
        "parts": List({"role": text, "content": List(part)}),
    }
    columns = {"id": text, "images": List(Image()), **{name: types[form] for name, form in forms.items()}, "source": text}
    # With the features in the file's metadata, so that datasets knows the images as images.
    return Features(columns).arrow_schema

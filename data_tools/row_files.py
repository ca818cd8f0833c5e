"""Rows to Parquet shards that ``datasets`` reads with their images, written in small groups of rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_tools.chat_sets import Chat
from data_tools.pair_sets import Pair
from data_tools.rated_sets import ScoredList
from mmalign.data.images import find_image, resolve_image_path
from mmalign.data.rows import IMAGES_OTHER, ChatRow, ListRow, PairRow, read_chat, read_list, read_pair
from mmalign.errors import UserError

# Rows held before they are written: with images of a few hundred kilobytes, some tens of megabytes.
GROUP_ROWS = 100
IMAGE_COLUMNS = ("images", IMAGES_OTHER)
"""Columns of lists of images."""
PICTURE_COLUMNS = ("image_chosen", "image_rejected")
"""Columns of one image each."""


class Writable(Protocol):
    """What a set's function makes of a record: a row to be."""

    def columns(self) -> dict[str, Any]:
        """Everything but images, by name."""

    def image_columns(self) -> dict[str, list[Any]]:
        """Images by the name of their column, undecoded."""


def written_row(made: Writable, *, root: Path | None, embed: bool) -> dict[str, Any]:
    """Bring a row to the form that is written. Arguments as in ``image_cell``."""
    cells = {name: [image_cell(value, root=root, embed=embed) for value in held] for name, held in made.image_columns().items()}
    columns = made.columns()
    return {"id": columns.pop("id"), **cells, **columns}


def image_cell(value: Any, *, root: Path | None, embed: bool) -> dict[str, Any]:
    """Write an image of a record as ``datasets`` does: bytes, or a path that stays relative to the image root.

    Args:
        value: Bytes, base64, a path, or a dict of them.
        root: Folder that paths start from.
        embed: Whether to put the bytes of the file in the place of its path.
    """
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return {"bytes": value["bytes"], "path": value.get("path")}
    value = find_image(value)
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if embed:
        return {"bytes": resolve_image_path(value, root=root).read_bytes(), "path": str(value)}
    return {"bytes": None, "path": str(value)}


def checked_pair(pair: Pair, images: Sequence[Any], images_other: Sequence[Any] | None = None) -> PairRow:
    """Check a pair as training will, with its images decoded already.

    Raises:
        ValueError: With the reason why the pair can't be used.
    """
    others = {} if images_other is None else {IMAGES_OTHER: list(images_other)}
    try:
        return read_pair({**pair.columns(), "images": list(images), **others}, index=0, with_other=bool(others))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"prompt, chosen or rejected is not in one of TRL's forms: {error!r}") from error


def checked_list(made: ScoredList, images: Sequence[Any]) -> ListRow:
    """Check a list of scored responses as training will, with its images decoded already.

    Raises:
        ValueError: With the reason why the list can't be used.
    """
    return read_list({**made.columns(), "images": list(images)}, index=0)


def checked_chat(made: Chat, images: Sequence[Any]) -> ChatRow:
    """Check a conversation as training will, with its images decoded already.

    Raises:
        ValueError: With the reason why the conversation can't be used.
    """
    return read_chat({**made.columns(), "images": list(images)}, index=0)


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


def column_form(name: str, value: Any) -> str:
    """Tell what a column holds, which is its type.

    Of TRL's forms of a text there are three: ``text``, ``messages``, and messages whose content is in ``parts``.
    """
    if name in IMAGE_COLUMNS:
        return "images"
    if name in PICTURE_COLUMNS:
        return "a picture"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        raise UserError(f"{name} is a {type(value).__name__}; expected text, a number, or a list")
    if all(isinstance(item, (int, float)) for item in value):
        return "numbers"
    if all(isinstance(item, str) for item in value):
        return "texts"
    return "parts" if any(isinstance(message["content"], list) for message in value) else "messages"


class RowWriter:
    """Writes ``NAME-00000.parquet`` and so on. All rows have the columns and forms of the first, because a column has one type."""

    def __init__(self, folder: Path, *, name: str, shard_rows: int) -> None:
        """Write files of this name to ``folder``, at most ``shard_rows`` rows a file."""
        if shard_rows < 1:
            raise UserError(f"shard_rows is {shard_rows}; expected at least 1")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = name
        self.shard_rows = shard_rows
        self.num_rows = 0
        self.forms: dict[str, str] = {}
        self._schema: Any = None
        self._file: Any = None
        self._buffer: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row: columns by name, those of ``IMAGE_COLUMNS`` as lists of cells, those of ``PICTURE_COLUMNS`` as one.

        Raises:
            ValueError: If a column has another form than the first row's, is missing or new, or holds what is no text.
        """
        check_unicode([value for name, value in row.items() if name not in (*IMAGE_COLUMNS, *PICTURE_COLUMNS)])
        check_unicode([cell["path"] for name in IMAGE_COLUMNS for cell in row.get(name, [])])
        check_unicode([row[name]["path"] for name in PICTURE_COLUMNS if name in row])
        forms = {name: column_form(name, value) for name, value in row.items()}
        if not self.forms:
            self.forms = forms
            self._schema = _schema(forms)
        self._check_forms(forms)
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

    def _check_forms(self, forms: Mapping[str, str]) -> None:
        missing, new = (", ".join(name for name in one if name not in other) for one, other in ((self.forms, forms), (forms, self.forms)))
        if missing:
            raise UserError(f"the row has no {missing}, which the first row has; convert the two kinds apart")
        if new:
            raise UserError(f"the row has {new}, which the first row has not; convert the two kinds apart")
        for name, form in forms.items():
            if form != self.forms[name]:
                raise UserError(f"{name} is {form}, where the first row's is {self.forms[name]}; convert the two kinds apart")

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._buffer:
            return
        if self._file is None:
            number = (self.num_rows - 1) // self.shard_rows
            self._file = pq.ParquetWriter(self.folder / f"{self.name}-{number:05d}.parquet", self._schema)
        self._file.write_table(pa.Table.from_pylist(self._buffer, schema=self._schema))
        self._buffer = []

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _schema(forms: Mapping[str, str]) -> Any:
    from datasets import Features, Image, List, Value

    text, number = Value("string"), Value("float64")
    types = {
        "images": List(Image()),
        "a picture": Image(),
        "true or false": Value("bool"),
        "a number": number,
        "numbers": List(number),
        "text": text,
        "texts": List(text),
        "messages": List({"role": text, "content": text}),
        "parts": List({"role": text, "content": List({"type": text, "text": text})}),
    }
    # With the features in the file's metadata, so that datasets knows the images as images.
    return Features({name: types[form] for name, form in forms.items()}).arrow_schema

"""JSON files to data sets: every value is what the file says, whatever its rows mix, however long it is.

The reader of ``datasets`` settles types by the first 10 MB of a file, makes times of texts that look like dates, and reads the text "5" of
a column that holds messages too as a number.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ArrowBasedBuilder, BuilderConfig, Dataset, DatasetInfo, DownloadManager, Features, Split, SplitGenerator, Version
from datasets.builder import Key

from mmalign.errors import UserError

CHUNK = 1000
"""Rows that become a table at once."""
_INT64 = range(-(2**63), 2**63)
_SPACE = re.compile(r"\s*")


class _NoRowsError(Exception):
    """A file without a row has no types either."""


@dataclass
class _FileConfig(BuilderConfig):
    """Which file, and how it was when it was read: what ``datasets`` keeps is of that."""

    path: str = ""
    state: str = ""


class _JsonFile(ArrowBasedBuilder):
    VERSION = Version("1.0.0")
    BUILDER_CONFIG_CLASS = _FileConfig

    def _info(self) -> DatasetInfo:
        return DatasetInfo()

    def _split_generators(self, dl_manager: DownloadManager) -> list[SplitGenerator]:
        schema = _find_schema(Path(self.config.path))
        self.info.features = Features.from_arrow_schema(schema)
        return [SplitGenerator(name=Split.TRAIN, gen_kwargs={"schema": schema})]

    def _generate_tables(self, schema: pa.Schema) -> Iterator[tuple[Key, pa.Table]]:
        for number, rows in enumerate(_read_chunks(Path(self.config.path))):
            columns = [_to_array([row.get(field.name) for row in rows], field.type) for field in schema]
            yield Key(0, number), pa.Table.from_arrays(columns, schema=schema)


def read_json_file(path: Path) -> Dataset:
    """Read JSON Lines, a list, or objects one behind the other; what is read is kept in the cache of ``datasets``.

    Raises:
        ValueError: If it is no JSON, with the line, or holds something else than objects.
    """
    found = path.stat()
    builder = _JsonFile(path=str(path.resolve()), state=f"{found.st_size}-{found.st_mtime_ns}")
    try:
        builder.download_and_prepare()
    except _NoRowsError:
        return Dataset.from_dict({})
    return builder.as_dataset(split=Split.TRAIN)


def json_array(values: Iterable[Any]) -> pa.Array:
    """Write values as a column of JSON, a text as a JSON text, so that reading gives back what it was."""
    texts = [None if value is None else _to_bytes(json.dumps(value, ensure_ascii=False)) for value in values]
    # A view: bytes that are no UTF-8 cost the row that holds them, when it is read.
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.binary()).view(pa.string()))


def _read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a file one by one. Raises as ``read_json_file``."""
    for number, value in enumerate(_read_values(path)):
        if not isinstance(value, dict):
            raise _refused(path, f"row {number} is a {type(value).__name__}, expected an object with the columns of a row")
        yield value


def _read_chunks(path: Path) -> Iterator[list[dict[str, Any]]]:
    objects = _read_objects(path)
    while rows := list(islice(objects, CHUNK)):
        yield rows


def _read_values(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        begun = False
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = _decode(line, path)
            except json.JSONDecodeError as error:
                if begun:
                    raise _refused(path, f"line {number} is no JSON: {error.msg} (column {error.colno})") from error
                break
            yield from value if isinstance(value, list) else [value]
            begun = True
        else:
            return
        file.seek(0)
        yield from _read_whole(file.read(), path)


def _read_whole(text: str, path: Path) -> Iterator[Any]:
    """Values that take several lines each."""
    at = _after_space(text, 0)
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _refused(path, f"line {error.lineno} is no JSON: {error.msg} (column {error.colno})") from error
        except (RecursionError, UserError) as error:
            raise _refused(path, error) from error
        yield from value if isinstance(value, list) else [value]
        at = _after_space(text, at)


def _decode(line: str, path: Path) -> Any:
    try:
        return _DECODER.decode(line)
    except (RecursionError, UserError) as error:
        raise _refused(path, error) from error


def _refused(path: Path, reason: object) -> UserError:
    return UserError(f"{path} can't be read as {path.suffix[1:]}: {reason}")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _read_int(text: str) -> int | str:
    """A number of more digits than a column holds stays as it is written: it is a name."""
    return value if len(text) <= len(str(_INT64.start)) and (value := int(text)) in _INT64 else text


def _read_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"an object has the key {twice!r} twice")
    return value


_DECODER = json.JSONDecoder(strict=False, parse_int=_read_int, object_pairs_hook=_read_object)


def _find_schema(path: Path) -> pa.Schema:
    """Find the type of each column that holds all of its values as they are: Arrow's where there is one, otherwise JSON."""
    types: dict[str, pa.DataType] = {}
    for rows in _read_chunks(path):
        for name in dict.fromkeys(name for row in rows for name in row):
            held = types.get(name, pa.null())
            if held != pa.json_():
                types[name] = _common(held, _find_type([row.get(name) for row in rows]))
    if not types:
        raise _NoRowsError
    return pa.schema(list(types.items()))


def _find_type(values: Sequence[Any]) -> pa.DataType:
    if not _has_one_form(values):
        return pa.json_()
    try:
        return pa.array(values).type
    # Unicode's: half of a surrogate pair, and bytes that are no UTF-8.
    except (pa.ArrowException, UnicodeEncodeError):
        return pa.json_()


def _has_one_form(values: Sequence[Any]) -> bool:
    """Whether mappings at the same place have the same keys: Arrow's would have all keys of all."""
    held = [value for value in values if value is not None]
    if all(isinstance(value, list) for value in held):
        return not held or _has_one_form([part for value in held for part in value])
    if all(isinstance(value, dict) for value in held):
        keys = held[0].keys()
        return bool(keys) and all(value.keys() == keys for value in held) and all(_has_one_form([v[k] for v in held]) for k in keys)
    return not any(isinstance(value, (dict, list)) for value in held)


def _common(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    try:
        both = [pa.schema([("value", one)]) for one in (first, second)]
        return pa.unify_schemas(both, promote_options="permissive").field("value").type
    except pa.ArrowException:
        return pa.json_()


def _to_array(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    return json_array(values) if type_ == pa.json_() else pa.array(values, type=type_)


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

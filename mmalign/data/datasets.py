"""Data sets from files: columns as they are, images left encoded until a row is read."""

import codecs
import dataclasses
import functools
import glob
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Json, LargeList, List, concatenate_datasets
from datasets import config as datasets_config
from datasets.exceptions import DatasetGenerationError
from pyarrow import parquet

from mmalign.data.git_lfs import refuse_pointer
from mmalign.data.json_files import json_array, read_json_file
from mmalign.errors import UserError
from mmalign.files import hash_file
from mmalign.held import find_held


def read_parquet(path: Path, *, cache: Path | None = None) -> Dataset:
    """Read a Parquet file through the cache of ``datasets``, or through another one."""
    # datasets takes a path for a pattern: of [a] and a, it would read the other folder's file.
    return Dataset.from_parquet(glob.escape(str(path)), cache_dir=None if cache is None else str(cache))


def _read_checked_parquet(path: Path) -> Dataset:
    schema = parquet.read_schema(path)
    try:
        Features.from_arrow_schema(schema)
    except (AttributeError, KeyError, TypeError) as error:
        # datasets builds the types that a file's own schema names, and that can name anything.
        raise UserError(f"{path} has a schema that names no types of datasets: {error!r}") from error
    return read_parquet(path)


_READERS: dict[str, Callable[[Path], Dataset]] = {".parquet": _read_checked_parquet, ".json": read_json_file, ".jsonl": read_json_file}


_PACKED = frozenset({".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip"})
_SPLIT = re.compile(r"(train|test|val|dev|eval)(?:ing|id|idation|uation)?(?![a-z])", re.IGNORECASE)
"""How the files of a hub's data set begin: with the split that they are of."""


def find_data_files(source: Path) -> list[Path]:
    """List the data files at ``source``, a file or a folder.

    Raises:
        ValueError: If there is none; if the folder is one that ``save_to_disk`` wrote, whose JSON files describe the data and hold none; or
            if its files are of several splits.
    """
    written = {path.name for path in source.glob("*.json")}
    if "dataset_dict.json" in written or {"state.json", "dataset_info.json"} <= written:
        raise UserError(f"{source} was written by save_to_disk of datasets; write each split as a file with to_parquet, and name that")
    beside = [source] if source.is_file() else sorted(path for path in source.glob("[!.]*") if path.name != "dataset_infos.json")
    packed = next((path for path in beside if path.suffix.lower() in _PACKED and Path(path.stem).suffix.lower() in _READERS), None)
    if packed:
        raise UserError(f"{packed} is packed; unpack it")
    files = [path for path in beside if path.suffix.lower() in _READERS]
    if not files:
        folders = ", ".join(path.name for path in beside if path.is_dir())
        nothing = "" if source.exists() else ", where nothing is"
        raise UserError(
            f"no data at {source}{nothing}: expected a {', '.join(_READERS)} file, or a folder of them"
            f"{f'; name one of its folders: {folders}' if folders else ''}"
        )
    splits = {found.group(1).lower(): path.name for path in files if (found := _SPLIT.match(path.name))}
    if len(splits) > 1:
        raise UserError(
            f"{source} holds files of several splits: {', '.join(sorted(splits.values()))}; name one of them, or put each into a folder"
        )
    return files


def hash_data_files(source: Path) -> dict[str, str]:
    """Hash the data files at ``source``, by name: what a record says that a result was made from."""
    if (held := find_held(source)) is not None:
        return {"memory": hash_rows(held)}
    return {path.name: hash_file(path) for path in find_data_files(source)}


def refuse_overwriting(source: Path, written: Path) -> None:
    """Raise UserError if a command would write over one of the files that it reads."""
    if find_held(source) is None and written.resolve() in [path.resolve() for path in find_data_files(source)]:
        raise UserError(f"{written} is read and would be written over; choose another --out")


def hash_rows(dataset: Dataset) -> str:
    """Hash the content of a data set that is in memory: its columns, and its rows a thousand at a time."""
    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(1000):
        digest.update(str(table.schema.remove_metadata()).encode())
        # One form of a table, whatever pieces it was put together from.
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def load_rows(source: Path) -> Dataset:
    """Load a data set. Image columns keep their bytes, so that a broken image breaks one row and not the run.

    Raises:
        ValueError: If there are no files, or no rows.
    """
    held = find_held(source)
    dataset = read_files(find_data_files(source), source) if held is None else held.with_format(None)
    if len(dataset) == 0:
        raise UserError(f"{source} has no rows")
    for name, feature in dataset.features.items():
        encoded = _leave_encoded(feature)
        if encoded != feature:
            dataset = dataset.cast_column(name, encoded)
    return dataset


def add_columns(dataset: Dataset, columns: Mapping[str, Any]) -> Dataset:
    """Add columns to rows of which none stands twice; where it has them already, these replace them.

    Of rows that were selected, ``Dataset.add_column`` first copies everything to its cache: as much again as the data set's images.

    Args:
        dataset: Rows, perhaps selected ones.
        columns: Values for each, as Arrow takes them.
    """
    added = pa.table(dict(columns))
    old = [column for column in added.column_names if column in dataset.column_names]
    kept = dataset.remove_columns(old)
    if len(dataset) == 0:
        # What is put together leaves out data sets without rows, and their columns.
        return functools.reduce(lambda rows, name: rows.add_column(name, added[name]), added.column_names, kept)
    if dataset._indices is None:
        return concatenate_datasets([kept, _named(added)], axis=1)
    chosen = dataset._indices.column(0).to_numpy()
    whole = Dataset(kept.data, info=kept.info, fingerprint=kept._fingerprint)
    # Nothing where a row was not selected.
    place = np.full(len(whole), -1)
    place[chosen] = np.arange(len(chosen))
    spread = added.take(pa.array(place, mask=place < 0))
    return concatenate_datasets([whole, _named(spread)], axis=1).select(chosen)


def _named(table: pa.Table) -> Dataset:
    # By a name of its own datasets knows what it has in its cache; to make one, it would hash all values.
    return Dataset(table, fingerprint=secrets.token_hex(8))


def read_files(files: Sequence[Path], source: Path) -> Dataset:
    """Read the files of a data set as one; without columns where no file has a row.

    Args:
        files: Parquet, JSON or JSONL.
        source: What they are files of, for errors.

    Raises:
        ValueError: If a file can't be read, or they hold a column in forms that don't go together.
    """
    parts = [part for part in map(_read, files) if part is not None]
    return concatenate_datasets(_with_one_form(parts, source) or [Dataset.from_dict({})])


def _with_one_form(parts: list[Dataset], source: Path) -> list[Dataset]:
    """Give a column that the files hold in different forms (text here, messages there) the type that holds any of them."""
    forms: dict[str, list[Any]] = {}
    for part in parts:
        for name, feature in part.features.items():
            forms.setdefault(name, []).append(feature)
    for name, held in forms.items():
        if all(feature == held[0] for feature in held):
            continue
        # Numbers of one list of classes mean nothing in another.
        if any(_leave_encoded(feature) != feature or isinstance(feature, ClassLabel) for feature in held):
            raise UserError(f"the files of {source} hold column {name} in forms that don't go together: {held[0]} and {held[-1]}")
        parts = [_with_json(part, name) if name in part.column_names else part for part in parts]
    return parts


def _with_json(part: Dataset, name: str) -> Dataset:
    column = Dataset(pa.table({name: json_array(part[name])}))
    return concatenate_datasets([part.remove_columns(name), column], axis=1)


def _leave_encoded(feature: Any) -> Any:
    """The feature without decoding at any depth: a file's own schema decides where images lie, and decoding opens any path they name."""
    # Json is decoded from the row itself; all other types that are decoded open files (Image, Audio, Video, Pdf and so on).
    if hasattr(feature, "decode") and not isinstance(feature, Json):
        return dataclasses.replace(feature, decode=False)
    if isinstance(feature, (List, LargeList)):
        return dataclasses.replace(feature, feature=_leave_encoded(feature.feature))
    if isinstance(feature, dict):
        return {name: _leave_encoded(part) for name, part in feature.items()}
    return feature


def _read(path: Path) -> Dataset | None:
    if path.stat().st_size == 0:
        return None
    _check_begin(path)
    try:
        return _READERS[path.suffix.lower()](path)
    except UserError:
        raise
    # Arrow's own errors of damaged files are ValueErrors and OSErrors.
    except (DatasetGenerationError, OSError, ValueError) as error:
        if "corresponds to no data" in str(error):
            # How datasets says that a file has columns and no rows.
            return None
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno is not None and cause.filename != str(path):
            raise OSError(
                f"{datasets_config.HF_DATASETS_CACHE} can't hold what is read of {path}: {cause}; free space, or set HF_DATASETS_CACHE"
            ) from error
        raise UserError(f"{path} can't be read as {path.suffix[1:]}: {cause}") from error


def _check_begin(path: Path) -> None:
    """Refuse what is not of its name's kind before ``datasets`` reads it, which unpacks an archive whatever it is called."""
    refuse_pointer(path)
    with path.open("rb") as file:
        head = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()
    starts = (b"PAR1",) if path.suffix.lower() == ".parquet" else (b"{", b"[")
    if not head.startswith(starts):
        named = " or ".join(start.decode() for start in starts)
        raise UserError(f"{path} is no {path.suffix[1:]} file: it begins with {head[:8]!r}, expected {named}")

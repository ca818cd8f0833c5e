"""Rows with pictures as Parquet files, written a part at a time."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from pyarrow.parquet import ParquetWriter

from mmalign.files import whole

GROUP_ROWS = 20
"""Rows that are held before they are written."""
_TEXT, _NUMBER, _CODES, _PICTURE = Value("string"), Value("float64"), List(Value("int64")), ImageFeature()
KNOWN = {
    **dict.fromkeys(("id", "caption", "codes_of", "gold"), _TEXT),
    **dict.fromkeys(("codes_chosen", "codes_rejected"), _CODES),
    **dict.fromkeys(("score_chosen", "score_rejected"), _NUMBER),
    "codes_responses": List(_CODES),
    "paths": List(Value("binary")),
}
"""Types of columns, where the rows were not read with others."""
MADE = {
    **dict.fromkeys(("image", "image_chosen", "image_rejected"), _PICTURE),
    **dict.fromkeys(("images", "images_responses"), List(_PICTURE)),
    "scores": List(_NUMBER),
}
"""The same of columns that are made anew."""


def write_picture_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, features: Mapping[str, Any] | None = None) -> int:
    """Write rows with their pictures, some at a time; the file is there whole or not at all.

    Args:
        path: Of the Parquet file.
        rows: At least one; the first has all columns.
        features: Types of columns that stay as they were read; the first rows tell those that are not known.

    Returns:
        How many rows there were.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    left, count, types = iter(rows), 0, None
    with whole(path) as partial, ExitStack() as open_files:
        while part := list(islice(left, GROUP_ROWS)):
            if types is None:
                told = {**Dataset.from_list(part).features, **KNOWN, **(features or {}), **MADE}
                types = Features({name: told[name] for name in part[0]})
                file = open_files.enter_context(ParquetWriter(partial, types.arrow_schema))
            columns = {name: [row.get(name) for row in part] for name in types}
            file.write_table(Dataset.from_dict(columns, features=types).data.table)
            count += len(part)
    return count

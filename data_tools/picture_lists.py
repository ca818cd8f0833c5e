"""What mmalign sample-images or sample-denoiser drew, as scored lists; rows of pictures as Parquet files."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from pyarrow.parquet import ParquetWriter

from data_tools.picture_scores import PictureScorer
from mmalign.data.images import load_image
from mmalign.data.rows import check_columns
from mmalign.files import whole

GROUP_ROWS = 100
"""Rows that are held before they are written."""
_TEXT, _NUMBER, _CODES, _PICTURE = Value("string"), Value("float64"), List(Value("int64")), ImageFeature()
KNOWN = {
    **dict.fromkeys(("id", "caption", "codes_of"), _TEXT),
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


def read_lists(samples: Dataset, scorer: PictureScorer, *, what: str) -> Iterator[dict[str, Any]]:
    """Score each caption's pictures: rows that ``train listwise --pictures`` or ``train image-preference`` read.

    Args:
        samples: Of sample-images, a row per picture, or of sample-denoiser, a row per caption with ``images``.
        scorer: Of the pictures of a caption.
        what: What the samples are called in errors.

    Raises:
        ValueError: If columns are missing, or the scorer can't score.
    """
    if "images" in samples.column_names:
        for row in samples:
            yield {**row, "scores": scorer(row, [load_image(image) for image in row["images"]])}
        return
    check_columns(samples.column_names, ("id", "caption", "image", "codes", "codes_of"), what=what)
    for group in _by_caption(samples):
        first, images = group[0], [row["image"] for row in group]
        drawn = {"images_responses": images, "codes_responses": [row["codes"] for row in group], "codes_of": first["codes_of"]}
        scores = scorer(first, [load_image(image) for image in images])
        yield {"id": str(first["id"]), "caption": first["caption"], **drawn, "scores": scores}


def write_picture_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, features: Mapping[str, Any] | None = None) -> int:
    """Write rows with their pictures, some at a time; the file is there whole or not at all.

    Args:
        path: Of the Parquet file.
        rows: At least one; all with the same columns.
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
            file.write_table(Dataset.from_list(part, features=types).data.table)
            count += len(part)
    return count


def _by_caption(samples: Dataset) -> Iterator[list[Mapping[str, Any]]]:
    places: dict[tuple[str, str], list[int]] = {}
    for number, (name, caption) in enumerate(zip(samples["id"], samples["caption"], strict=True)):
        places.setdefault((str(name), caption), []).append(number)
    for numbers in places.values():
        yield [samples[number] for number in numbers]

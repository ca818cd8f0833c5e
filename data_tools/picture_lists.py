"""What mmalign sample-images or sample-denoiser drew, as scored lists; rows of pictures as Parquet files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, List
from datasets import Image as ImageFeature

from data_tools.picture_scores import PictureScorer
from mmalign.data.images import load_image
from mmalign.data.rows import check_columns
from mmalign.files import whole

IMAGE_COLUMNS = {
    **dict.fromkeys(("image", "image_chosen", "image_rejected"), ImageFeature()),
    **dict.fromkeys(("images", "images_responses"), List(ImageFeature())),
}


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


def write_picture_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with their pictures; the file is there whole or not at all."""
    held = Dataset.from_list(list(rows))
    for name, feature in IMAGE_COLUMNS.items():
        held = held.cast_column(name, feature) if name in held.column_names else held
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        held.to_parquet(partial)


def _by_caption(rows: Iterable[Mapping[str, Any]]) -> Iterable[list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((str(row["id"]), row["caption"]), []).append(row)
    return groups.values()

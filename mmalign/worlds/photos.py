"""Labelled photographs as the objects of a world."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import ArrowException

from mmalign.data.datasets import load_rows
from mmalign.errors import UserError
from mmalign.files import expected_form


@dataclass(frozen=True)
class PhotoPool:
    """Encoded photographs by class, apart for each split: an evaluation photo is never trained on."""

    names: tuple[str, ...]
    by_split: dict[str, dict[int, list[bytes]]]

    def of(self, split: str) -> dict[int, list[bytes]]:
        """The photographs of a split: contrasts are of those that pairs and evaluation have."""
        return self.by_split[{"contrast": "pairs", "contrast_eval": "eval"}.get(split, split)]


def load_photos(source: Path) -> PhotoPool:
    """Read a parquet file with ``image`` and ``label`` (a ClassLabel), and deal its photos out to the splits.

    Raises:
        ValueError: If the file or a column is missing, labels have no names, or there are fewer than four classes, an odd
            number of them, or a class without enough photos.
    """
    if not source.is_file():
        raise UserError(f"photos not found: {source}; expected a parquet file with columns image and label")
    try:
        columns = pq.read_schema(source).names
    except (ArrowException, OSError) as error:
        raise UserError(f"{source} can't be read as Parquet: {error}") from error
    if not {"image", "label"} <= set(columns):
        raise UserError(f"{source} has columns {', '.join(columns)}; expected image and label")
    dataset = load_rows(source).with_format("arrow")
    label = dataset.features["label"]
    if not hasattr(label, "names"):
        raise UserError(f"label of {source} is {label}; expected a datasets.ClassLabel, whose names become words")
    if len(label.names) < 4 or len(label.names) % 2:
        raise UserError(f"{source} has {len(label.names)} classes; expected an even number from 4 on: kinds come in pairs")
    # Half of the photos go to fine-tuning, which needs variety most.
    dealing = ["sft", "captions", "sft", "pairs", "sft", "eval"]
    by_split: dict[str, dict[int, list[bytes]]] = {split: {kind: [] for kind in range(len(label.names))} for split in dealing}
    seen = [0] * len(label.names)
    table = dataset[:]
    with expected_form(source):
        for image, kind in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
            if image["bytes"] is None:
                raise UserError(
                    f"{source} holds the photo {image['path']!r} as a path; expected its bytes: save the data set with its images"
                )
            by_split[dealing[seen[kind] % len(dealing)]][kind].append(image["bytes"])
            seen[kind] += 1
    if min(seen) < len(dealing):
        raise UserError(f"class {label.names[seen.index(min(seen))]!r} has {min(seen)} photos; expected at least {len(dealing)}")
    return PhotoPool(tuple(name.replace("_", " ") for name in label.names), by_split)

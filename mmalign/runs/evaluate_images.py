"""``mmalign evaluate images``: what pictures show, as a reader reads them, against what their captions name."""

import json
from typing import Any

import numpy as np
from datasets import Dataset

from mmalign.data.datasets import hash_data_files, load_rows
from mmalign.data.rows import check_columns, row_id
from mmalign.files import hash_file, write_whole
from mmalign.options.evaluate_images import EvaluateImagesOptions
from mmalign.pictures.metrics import compare_objects, distances_between
from mmalign.pictures.reader import Objects, load_reader, read_truth
from mmalign.tables import text_table

RESULT = "images.json"


def run(options: EvaluateImagesOptions) -> dict[str, Any]:
    """Write and print the metrics.

    Raises:
        ValueError: If there is no reader, or rows lack pictures or objects.
    """
    reader = load_reader(options.reader)
    rows = load_rows(options.pictures)
    check_columns(rows.column_names, ("image", "objects"), what=str(options.pictures))
    drawn: list[Objects] = []
    named: list[Objects] = []
    distances: list[float] = []
    groups = group_by_caption(rows)
    # A caption's pictures at a time: those of all may be more than memory holds.
    for numbers in groups:
        pictures, objects = read_truth((rows[number] for number in numbers), image_root=options.image_root)
        drawn += reader.read(pictures)
        named += objects
        distances += distances_between(pictures)
    metrics = compare_objects(drawn, named) | ({"diversity": float(np.mean(distances))} if distances else {})
    made_from = {"data": hash_data_files(options.pictures), "reader": hash_file(options.reader / "reader.safetensors")}
    result = {"pictures": len(rows), "captions": len(groups), "metrics": metrics, **made_from}
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / RESULT, json.dumps(result, indent=1) + "\n")
    print(text_table([[name, f"{value:.4f}"] for name, value in metrics.items()]))
    return result


def group_by_caption(rows: Dataset) -> list[list[int]]:
    """The numbers of each caption's rows: those with one id."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows.remove_columns("image")):
        groups.setdefault(row_id(row, index=index), []).append(index)
    return list(groups.values())

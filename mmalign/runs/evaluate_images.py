"""``mmalign evaluate images``: what pictures show, as a reader reads them, against what their captions name."""

import json
from collections import defaultdict
from typing import Any

from mmalign.data.datasets import hash_data_files, load_rows
from mmalign.data.rows import check_columns, row_id
from mmalign.files import hash_file, write_whole
from mmalign.options.evaluate_images import EvaluateImagesOptions
from mmalign.pictures.metrics import compare_objects, measure_diversity
from mmalign.pictures.reader import load_reader, read_truth
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
    pictures, named = read_truth(rows, image_root=options.image_root)
    metrics = compare_objects(reader.read(pictures), named)
    groups = defaultdict(list)
    for index, picture in enumerate(pictures):
        groups[row_id(rows[index], index=index)].append(picture)
    diversity = measure_diversity(list(groups.values()))
    metrics |= {} if diversity is None else {"diversity": diversity}
    made_from = {"data": hash_data_files(options.pictures), "reader": hash_file(options.reader / "reader.safetensors")}
    result = {"pictures": len(pictures), "captions": len(groups), "metrics": metrics, **made_from}
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / RESULT, json.dumps(result, indent=1) + "\n")
    print(text_table([[name, f"{value:.4f}"] for name, value in metrics.items()]))
    return result

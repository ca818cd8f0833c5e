"""The folder of a small synthetic set: images as a data set, their target features as a file of logits, and a sheet to look at.

Shape legend: M = images, E = width of the target's features, S = side.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmalign.classifier.class_logits import save_class_logits
from mmalign.data.images import digest_images
from mmalign.files import whole

IMAGES_FILE, TARGETS_FILE, SHEET_FILE = "train.parquet", "targets.safetensors", "sheet.png"
# Images in a row of the sheet, all of its images, and the least side of one.
_COLUMNS, _SHOWN, _TILE = 20, 100, 48


def save_set(
    folder: Path,
    *,
    images: NDArray[np.uint8],
    features: Tensor,
    ids: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    source: str,
) -> None:
    """Write images and features so that ``classifier train --form feature-kd`` reads them.

    Args:
        folder: Where.
        images: (M, 3, S, S).
        features: (M, E).
        ids: Of the real images that they began as.
        labels: Of the same: only a column that every data set has.
        classes: Names.
        source: What the target is.
    """
    drawn = [Image.fromarray(one.transpose(1, 2, 0)) for one in images]
    kinds = Features({"image": ImageFeature(), "label": ClassLabel(names=list(classes)), "id": Value("string")})
    rows = {"image": [{"bytes": _to_png(one), "path": None} for one in drawn], "label": list(labels), "id": list(ids)}
    with whole(folder / IMAGES_FILE) as partial:
        Dataset.from_dict(rows, features=kinds).to_parquet(partial)
    # A row that is not finite has no teacher of classes.
    nothing = torch.full((len(ids), len(classes)), torch.nan)
    digests = [digest_images([one]) for one in drawn]
    path = folder / TARGETS_FILE
    save_class_logits(path, ids=ids, classes=classes, logits=nothing, features=features.cpu(), source=source, digests=digests)


def save_sheet(path: Path, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> None:
    """Draw up to 100 images (M, 3, S, S): a row of what they began as, below it what they became."""
    scale = -(-_TILE // before.shape[-1])
    rows = []
    for start in range(0, min(len(before), _SHOWN), _COLUMNS):
        rows += [before[start : start + _COLUMNS], after[start : start + _COLUMNS]]
    side, columns = before.shape[-1] * scale, min(_COLUMNS, len(before))
    sheet = Image.new("RGB", (columns * (side + 2), sum(side + 2 + 6 * (i % 2) for i in range(len(rows)))), "white")
    top = 0
    for number, row in enumerate(rows):
        for column, one in enumerate(row):
            tile = Image.fromarray(one.transpose(1, 2, 0)).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * (side + 2), top))
        # A pair of rows stands apart from the next.
        top += side + 2 + 6 * (number % 2)
    with whole(path) as partial:
        sheet.save(partial, format="PNG")


def _to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()

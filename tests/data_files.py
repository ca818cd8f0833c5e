"""Rows as files, in the forms that users have them."""

import io
from pathlib import Path
from typing import Any

from datasets import Dataset, List
from datasets import Image as ImageFeature

from tests.tiny_models import pair_rows


def save_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write parquet with embedded images."""
    Dataset.from_list(rows).cast_column("images", List(ImageFeature())).to_parquet(str(path))
    return path


def save_encoded(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write parquet with images as bytes or paths, whether or not they can be read."""
    Dataset.from_list(rows).to_parquet(str(path))
    return path


def scored_rows(num_rows: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs with what scoring adds: difficulty and the reference's log-probabilities."""
    rows = pair_rows(num_rows, seed=seed)
    extra = {"reference_logps_chosen": -20.0, "reference_logps_rejected": -21.0}
    return [{**row, "difficulty": (i + 0.5) / num_rows, **extra} for i, row in enumerate(rows)]


def chat_rows(num_rows: int) -> list[dict[str, Any]]:
    """Conversations of one turn."""
    return [{"id": row["id"], "images": row["images"], "messages": row["prompt"] + row["chosen"]} for row in pair_rows(num_rows)]


def encoded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its images as PNG bytes, the form in which a broken image can be written."""
    images = []
    for image in row["images"]:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    return {**row, "images": images}

"""Rows as files, in the forms that users have them."""

import io
import json
from pathlib import Path
from typing import Any

from datasets import Dataset, List
from datasets import Image as ImageFeature
from transformers import AutoProcessor

from mmalign.data.caches import REFERENCE_FINGERPRINT, REFERENCE_IMAGES, REFERENCE_TEXT, digest_text
from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.rows import read_pair
from mmalign.models.fingerprint import fingerprint_checkpoint
from tests.tiny_models import pair_rows


def save_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write parquet with embedded images."""
    Dataset.from_list(rows).cast_column("images", List(ImageFeature())).to_parquet(str(path))
    return path


def save_encoded(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write parquet with images as bytes or paths, whether or not they can be read."""
    Dataset.from_list(rows).to_parquet(str(path))
    return path


def save_by_path(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines and, beside them, each image as a PNG file that they name; ``folder`` is the image root."""
    folder.mkdir()
    lines = []
    for number, row in enumerate(rows):
        names = [f"{number}-{i}.png" for i in range(len(row["images"]))]
        for name, image in zip(names, row["images"], strict=True):
            image.save(folder / name)
        lines.append(json.dumps({**row, "images": names}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl"


def scored_rows(num_rows: int, *, seed: int = 0, reference: Path | None = None) -> list[dict[str, Any]]:
    """Pairs with a difficulty, and with log-probabilities of about the right size that say they come from ``reference``."""
    rows = pair_rows(num_rows, seed=seed)
    rows = [{**row, "difficulty": (i + 0.5) / num_rows} for i, row in enumerate(rows)]
    if reference is None:
        return rows
    processor = AutoProcessor.from_pretrained(reference)
    cached = {"reference_logps_chosen": -20.0, "reference_logps_rejected": -21.0}
    cached[REFERENCE_FINGERPRINT] = fingerprint_checkpoint(str(reference), dtype="auto")
    prompts = [_encode(processor, row) for row in rows]
    return [
        {**row, **cached, REFERENCE_TEXT: digest_text(found), REFERENCE_IMAGES: found.image_digest}
        for row, found in zip(rows, prompts, strict=True)
    ]


def _encode(processor: Any, raw: dict[str, Any]) -> EncodedPrompt:
    row = read_pair(raw, index=0)
    return encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected])


def chat_rows(num_rows: int) -> list[dict[str, Any]]:
    """Conversations of one turn."""
    return [{"id": row["id"], "images": row["images"], "messages": row["prompt"] + row["chosen"]} for row in pair_rows(num_rows)]


def question_rows(num_rows: int) -> list[dict[str, Any]]:
    """Prompts without an answer."""
    return [{name: row[name] for name in ("id", "images", "prompt")} for row in pair_rows(num_rows)]


def encoded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its images as PNG bytes, the form in which a broken image can be written."""
    images = []
    for image in row["images"]:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    return {**row, "images": images}

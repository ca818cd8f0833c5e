"""Rows of captions and pictures: one picture, a pair, or a scored list.

Shape legend: S = side in pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmalign.data.images import load_image
from mmalign.data.numbers import is_finite
from mmalign.data.pictures import read_caption
from mmalign.errors import UserError

PICTURE_COLUMNS = ("caption", "image")
PAIR_COLUMNS = ("caption", "image_chosen", "image_rejected")
LIST_COLUMNS = ("caption", "images", "scores")


@dataclass(frozen=True)
class PictureRow:
    """A caption and its pictures, decoded and checked."""

    caption: str
    pixels: list[Tensor]
    """(3, S, S) each, from -1 to 1; chosen and rejected of a pair."""
    scores: list[float]
    """Of a list's pictures; empty otherwise."""


def read_pictures(raw: Mapping[str, Any], columns: Sequence[str], *, side: int, image_root: Path | None) -> PictureRow:
    """Decode a row.

    Args:
        raw: The row.
        columns: Which of the three forms it has.
        side: Pictures are cut to squares of this side.
        image_root: Where relative paths start.

    Raises:
        UserError: With the reason, if the row can't be used.
    """
    caption = read_caption(raw)
    lists = columns == LIST_COLUMNS
    found = raw["images"] if lists else [raw[name] for name in columns[1:]]
    if not isinstance(found, list) or len(found) < (2 if lists else 1):
        raise UserError("images are fewer than two; expected a list of pictures to compare")
    pixels = [to_pixels(load_image(value, root=image_root), side=side) for value in found]
    if columns == PAIR_COLUMNS and torch.equal(*pixels):
        raise UserError("image_chosen and image_rejected are the same picture at this resolution")
    return PictureRow(caption, pixels, _read_scores(raw["scores"], len(found)) if lists else [])


def to_pixels(image: Image.Image, *, side: int) -> Tensor:
    """(3, S, S) from -1 to 1: the middle square, scaled."""
    square = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """The picture of (3, S, S) from -1 to 1."""
    return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())


def read_number(raw: Mapping[str, Any], name: str, *, least: float = -math.inf) -> float:
    """Read a column of numbers that an objective needs.

    Raises:
        UserError: If it holds none, or a smaller one.
    """
    value = raw[name]
    if not is_finite(value) or value < least:
        raise UserError(f"{name} is {value!r}; expected a finite number{f' from {least:g}' if math.isfinite(least) else ''}")
    return float(value)


def _read_scores(value: Any, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        raise UserError(f"scores are {value!r}; expected {count}, one for each picture")
    scores = [read_number({"scores": score}, "scores") for score in value]
    if not all(0 <= score <= 1 for score in scores) or len(set(scores)) < 2:
        raise UserError(f"scores are {scores}; expected numbers from 0 to 1, not all the same")
    return scores

"""Captions cut into marked pieces: what is rightly named, and what is not in the image."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmalign.errors import UserError

Mark = Literal["wrong", "right", "plain"]
Span = tuple[int, int]
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Caption:
    """What a model said, and where in it objects stand; spans are (start, end) in characters, end excluded."""

    text: str
    hallucinated: Sequence[Span] = ()
    correct: Sequence[Span] = ()


@dataclass(frozen=True)
class GalleryItem:
    """An image with every model's caption.

    Attributes:
        image: PNG bytes.
        captions: Model name -> what it said.
        truth: The objects that are in the image.
        question: What the models were asked.
    """

    image: bytes
    captions: Mapping[str, Caption]
    truth: Sequence[str]
    question: str = ""


@dataclass(frozen=True)
class Piece:
    """A run of characters with one mark."""

    text: str
    mark: Mark


def cut_caption(caption: Caption) -> list[Piece]:
    """Cut a caption at its spans; the pieces put together are the caption.

    Raises:
        ValueError: If a span lies outside the text, is empty, or overlaps another.
    """
    marked: list[tuple[Span, Mark]] = sorted(
        [((start, end), "wrong") for start, end in caption.hallucinated] + [((start, end), "right") for start, end in caption.correct]
    )
    pieces, position = [], 0
    for (start, end), mark in marked:
        if not 0 <= start < end <= len(caption.text):
            raise UserError(f"span ({start}, {end}) is not inside the {len(caption.text)} characters of {caption.text!r}")
        if start < position:
            raise UserError(f"span ({start}, {end}) overlaps the one before it, which ends at {position}, in {caption.text!r}")
        pieces += [Piece(caption.text[position:start], "plain"), Piece(caption.text[start:end], mark)]
        position = end
    pieces.append(Piece(caption.text[position:], "plain"))
    return [piece for piece in pieces if piece.text]


def check_gallery(gallery: Sequence[GalleryItem], *, names: Sequence[str]) -> None:
    """Refuse items that can't be shown.

    Raises:
        ValueError: If an image is no PNG, or a model's caption is missing.
    """
    for index, item in enumerate(gallery):
        if not item.image.startswith(_PNG):
            raise UserError(f"gallery item {index}: the image starts with {item.image[:8]!r}; expected the bytes of a PNG file")
        if set(item.captions) != set(names):
            raise UserError(f"gallery item {index} has captions of {sorted(item.captions)}; expected one of each of {sorted(names)}")


def to_data_uri(image: bytes, *, kind: Literal["png", "jpeg"] = "png") -> str:
    """Return the image as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"

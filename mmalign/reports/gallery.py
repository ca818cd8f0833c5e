"""What a page shows of a row: its image made small, and its texts cut where words are right or wrong."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from mmalign.errors import UserError

Mark = Literal["wrong", "right", "plain"]
Span = tuple[int, int]
_THUMBNAIL = (336, 336)
# Images of at most this size are drawn, not photographed: they are kept as they are.
_SMALL = 128


@dataclass(frozen=True)
class Caption:
    """What a model said, and where in it objects stand; spans are (start, end) in characters, end excluded."""

    text: str
    hallucinated: Sequence[Span] = ()
    correct: Sequence[Span] = ()


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


def make_thumbnail(image: Image.Image) -> str:
    """Return the image made small, as an address that holds it."""
    shown, buffer = image.copy(), io.BytesIO()
    shown.thumbnail(_THUMBNAIL)
    kind = "png" if max(image.size) <= _SMALL else "jpeg"
    shown.save(buffer, kind, **({} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

"""Rows whose answers are pictures: a caption, and pictures of it, which a model's own tokenizer of pictures turns into codes.

``caption`` is text. The pictures stand under ``image`` (to fine-tune on), ``image_chosen`` and ``image_rejected`` (a pair), or
``images_responses`` (a list, with ``scores``). Beside each column of pictures there may be one of their codes: ``codes``,
``codes_chosen``, ``codes_rejected``, ``codes_responses``, null where a picture has none yet. ``codes_of`` names the tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from mmalign.data.encode import EncodedPrompt, check_lengths, check_text
from mmalign.data.images import digest_images, load_image
from mmalign.data.messages import Message
from mmalign.data.rows import row_id
from mmalign.errors import UserError

CAPTION, CODES_OF = "caption", "codes_of"
PICTURE, PICTURE_PAIR, PICTURE_LIST = ("image",), ("image_chosen", "image_rejected"), ("images_responses",)
CODES = {
    "image": "codes",
    "image_chosen": "codes_chosen",
    "image_rejected": "codes_rejected",
    "images_responses": "codes_responses",
}
"""The columns of codes by those of pictures."""


@dataclass(frozen=True)
class PictureRow:
    """A caption and its pictures, decoded and checked."""

    id: str
    caption: str
    pictures: list[Image.Image]


def read_pictures(raw: Mapping[str, Any], columns: Sequence[str], *, index: int, image_root: Path | None = None) -> PictureRow:
    """Decode and check a row.

    Args:
        raw: As ``datasets`` gives it.
        columns: Those of its pictures.
        index: Position in the data set: the id of a row without one.
        image_root: Folder that relative image paths start from.

    Raises:
        ValueError: With the reason why the row can't be used.
    """
    caption = read_caption(raw)
    pictures = [load_image(value, root=image_root) for value in picture_values(raw, columns)]
    if len({digest_images([picture]) for picture in pictures}) < len(pictures):
        raise UserError(f"two pictures of {' and '.join(columns)} are the same")
    return PictureRow(row_id(raw, index=index), caption, pictures)


def read_caption(raw: Mapping[str, Any]) -> str:
    """Return a row's caption.

    Raises:
        ValueError: If it is no text, or empty.
    """
    caption = raw[CAPTION]
    if not isinstance(caption, str) or not caption.strip():
        raise UserError(f"caption is {caption!r}; expected text")
    return caption


def picture_values(raw: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    """The pictures of a row as they stand in it, in the order of the columns.

    Raises:
        ValueError: If a list of pictures is none, or too short.
    """
    if list(columns) != list(PICTURE_LIST):
        return [raw[name] for name in columns]
    values = raw[PICTURE_LIST[0]]
    if not isinstance(values, list) or len(values) < 2:
        found = f"{len(values)} pictures" if isinstance(values, list) else f"a {type(values).__name__}"
        raise UserError(f"images_responses is {found}; expected a list of two pictures or more")
    return values


class PictureForm(Protocol):
    """How a family's rows hold a picture; see ``models/picture_tokens.py``."""

    first: int
    """Id of the first picture token: one more than the last word's."""
    columns: int
    """Picture tokens of a row of the picture."""
    row_end: int | None
    """The word that stands behind each row of a picture; None where none does."""
    pads: bool
    """Whether padding stands in the place of a caption that is left out; else nothing does."""

    def begin(self, processor: Any, caption: str) -> tuple[str, dict[str, Any]]:
        """Text and options by which the processor writes a caption and the begin of its picture."""


def lay_out(form: PictureForm, codes: Sequence[int]) -> list[int]:
    """Turn the codes of a picture, counted from 0, into the ids of its row."""
    ids: list[int] = []
    for number, code in enumerate(codes, start=1):
        ids.append(form.first + code)
        if form.row_end is not None and number % form.columns == 0:
            ids.append(form.row_end)
    return ids


def encode_caption(processor: Any, caption: str, form: PictureForm) -> list[int]:
    """Tokenise a caption up to where its picture begins.

    Raises:
        ValueError: If the caption holds a word that stands for an image.
    """
    check_text(processor, [Message(role="user", content=[{"type": "text", "text": caption}])])
    text, options = form.begin(processor, caption)
    ids: list[int] = processor(text=[text], return_tensors="pt", **options)["input_ids"][0].tolist()
    return ids


def caption_words(processor: Any, ids: Sequence[int]) -> list[bool]:
    """Say which ids of a prompt fall away without a caption: all but its begin token, and the begin of the picture with its size."""
    begin = processor.tokenizer.convert_tokens_to_ids(processor.image_start_token)
    picture = max(place for place, number in enumerate(ids) if number == begin)
    return [place < picture and (place > 0 or number != processor.tokenizer.bos_token_id) for place, number in enumerate(ids)]


def leave_caption_out(processor: Any, ids: Sequence[int], form: PictureForm) -> list[int]:
    """Turn a prompt into the same without a caption, as the family's guidance has it."""
    words = zip(ids, caption_words(processor, ids), strict=True)
    pad: int = processor.tokenizer.pad_token_id
    return [pad if word else number for number, word in words if form.pads or not word]


def encode_pictures(
    processor: Any, caption: str, codes: Sequence[Sequence[int]], *, form: PictureForm, max_length: int | None = None
) -> EncodedPrompt:
    """Tokenise a caption with pictures as its responses; the words between their tokens are not scored.

    Args:
        processor: The model's.
        caption: The prompt.
        codes: Of each picture, counted from 0.
        form: How rows hold them.
        max_length: Longest allowed caption + picture.

    Raises:
        ValueError: As ``encode_caption``, and if a row is longer than allowed.
    """
    responses = [lay_out(form, picture) for picture in codes]
    encoded = EncodedPrompt(
        prefix_ids=encode_caption(processor, caption, form),
        responses=responses,
        scored=[[number >= form.first for number in ids] for ids in responses],
        token_types={},
        images={},
        pictures=True,
    )
    return check_lengths(encoded, max_length)

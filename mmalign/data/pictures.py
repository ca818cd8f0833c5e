"""Rows whose answers are pictures: a caption, and pictures of it, which a model's own tokenizer of pictures turns into codes.

``caption`` is text. The pictures stand under ``image`` (to fine-tune on), ``image_chosen`` and ``image_rejected`` (a pair), or
``images_responses`` (a list, with ``scores``). Beside each column of pictures there may be one of their codes: ``codes``,
``codes_chosen``, ``codes_rejected``, ``codes_responses``, null where a picture has none yet. ``codes_of`` names the tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.data.encode import EncodedPrompt, check_lengths, check_text, text_options
from mmalign.data.images import digest_images, load_image
from mmalign.data.messages import Message
from mmalign.data.rows import row_id
from mmalign.data.templates import render
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


def encode_caption(processor: Any, caption: str) -> list[int]:
    """Tokenise a caption up to where its picture begins, as the processor's ``generation_mode="image"`` does it.

    Raises:
        ValueError: If the processor begins no pictures, or the caption holds a word that stands for an image.
    """
    if not hasattr(processor, "generation_mode"):
        raise UserError(
            f"{type(processor).__name__} has no generation_mode, by which a picture is begun; expected one such as JanusProcessor"
        )
    messages = [Message(role="user", content=[{"type": "text", "text": caption}])]
    check_text(processor, messages)
    text = render(processor, messages, add_generation_prompt=True)
    ids: list[int] = processor(text=[text], generation_mode="image", return_tensors="pt", **text_options(processor, text))["input_ids"][
        0
    ].tolist()
    return ids


def kept_without_caption(processor: Any) -> list[int]:
    """The words that are left of a prompt without a caption, in whose place padding stands: its begin, and the begin of the picture."""
    return [processor.tokenizer.bos_token_id, processor.tokenizer.convert_tokens_to_ids(processor.image_start_token)]


def encode_pictures(
    processor: Any, caption: str, codes: Sequence[Sequence[int]], *, first: int, max_length: int | None = None
) -> EncodedPrompt:
    """Tokenise a caption with pictures as its responses.

    Args:
        processor: The model's.
        caption: The prompt.
        codes: Of each picture, counted from 0.
        first: Id of code 0; see ``models/picture_tokens.py``.
        max_length: Longest allowed caption + picture.

    Raises:
        ValueError: As ``encode_caption``, and if a row is longer than allowed.
    """
    encoded = EncodedPrompt(
        prefix_ids=encode_caption(processor, caption),
        responses=[[first + code for code in picture] for picture in codes],
        scored=[[True] * len(picture) for picture in codes],
        token_types={},
        images={},
        pictures=True,
    )
    return check_lengths(encoded, max_length)

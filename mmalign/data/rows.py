"""Rows of preference pairs, of scored lists and of chats: TRL-compatible columns, checked one by one.

A pair has ``images``, ``prompt``, ``chosen`` and ``rejected`` (conversational or plain text), and optionally ``id`` and
``source``. A list has ``responses`` and ``scores`` for the two. A chat has ``images`` and ``messages``. All accept ``image`` for
``images``.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image

from mmalign.data.images import load_image
from mmalign.data.json_files import expected_form

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
LIST_COLUMNS = ("prompt", "responses", "scores")
CHAT_COLUMNS = ("messages",)


class Message(TypedDict):
    """One turn. ``content`` is plain text or a list of ``{"type": "image"}`` / ``{"type": "text", "text": ...}``."""

    role: str
    content: Any


@dataclass(frozen=True)
class PairRow:
    """One preference pair, decoded and checked."""

    id: str
    images: list[Image.Image]
    prompt: list[Message]
    chosen: str
    rejected: str
    source: str


@dataclass(frozen=True)
class ListRow:
    """Two or more scored responses to one prompt, decoded and checked."""

    id: str
    images: list[Image.Image]
    prompt: list[Message]
    responses: list[str]
    scores: list[float]


@dataclass(frozen=True)
class ChatRow:
    """One conversation about its images, decoded and checked; it ends with an assistant turn."""

    id: str
    images: list[Image.Image]
    messages: list[Message]


def check_columns(columns: Iterable[str], required: Iterable[str], *, what: str) -> None:
    """Check that a data set has the columns that a row needs.

    Raises:
        ValueError: With the missing and the present names.
    """
    columns = list(columns)
    missing = [name for name in required if name not in columns]
    if missing:
        raise ValueError(f"{what} has no column {', '.join(missing)}; it has {', '.join(columns)}. Needed: {', '.join(required)}")


def row_id(raw: Mapping[str, Any], *, index: int) -> str:
    """Return the row's own id, or its position as text."""
    return str(raw["id"]) if raw.get("id") is not None else str(index)


def read_pair(raw: Mapping[str, Any], *, index: int, image_root: Path | None = None) -> PairRow:
    """Decode and check one preference pair.

    Args:
        raw: A row as ``datasets`` gives it.
        index: Position in the data set: the id of a row without one.
        image_root: Folder that relative image paths start from.

    Returns:
        The checked pair; its prompt has one image placeholder for each image.

    Raises:
        ValueError: With the reason why the row can't be used.
    """
    images = _read_images(raw, image_root)
    chosen, rejected = response_text(raw["chosen"], "chosen"), response_text(raw["rejected"], "rejected")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same text")
    return PairRow(
        id=row_id(raw, index=index),
        images=images,
        prompt=_place_images(_as_messages(raw["prompt"]), len(images)),
        chosen=chosen,
        rejected=rejected,
        source=str(raw.get("source") or "all"),
    )


def read_list(raw: Mapping[str, Any], *, index: int, image_root: Path | None = None) -> ListRow:
    """Decode and check one prompt with its scored responses. Arguments and errors as in ``read_pair``."""
    images = _read_images(raw, image_root)
    for name in ("responses", "scores"):
        if not isinstance(raw[name], list):
            raise ValueError(f"{name} is a {type(raw[name]).__name__}; expected a list")
    responses = [response_text(value, f"response {number}") for number, value in enumerate(raw["responses"])]
    scores = list(raw["scores"])
    if len(responses) < 2 or len(scores) != len(responses):
        raise ValueError(f"row has {len(responses)} responses and {len(scores)} scores; expected two or more responses, each with a score")
    for score in scores:
        if not (isinstance(score, (int, float)) and math.isfinite(score)):
            raise ValueError(f"scores hold {score!r}; expected finite numbers")
    if len(set(responses)) < len(responses):
        raise ValueError("two responses are the same text")
    if len(set(scores)) == 1:
        raise ValueError(f"every response has score {scores[0]:g}: there is no preference to learn")
    prompt = _place_images(_as_messages(raw["prompt"]), len(images))
    return ListRow(row_id(raw, index=index), images, prompt, responses, [float(score) for score in scores])


def read_chat(raw: Mapping[str, Any], *, index: int, image_root: Path | None = None) -> ChatRow:
    """Decode and check one conversation. Arguments and errors as in ``read_pair``."""
    images = _read_images(raw, image_root)
    messages = _as_messages(raw["messages"])
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError("messages must hold a user turn and end with an assistant turn")
    for message in messages:
        if message["role"] == "assistant":
            response_text([message], "assistant turn")
    return ChatRow(row_id(raw, index=index), images, _place_images(messages, len(images)))


def response_text(value: Any, name: str) -> str:
    """Return the text of a response given as a string or as one assistant message.

    Raises:
        ValueError: If it is empty, has several turns, or is not text.
    """
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], dict) or value[0].get("role") != "assistant":
            raise ValueError(f"{name} must be one assistant message; it has {len(value)} messages")
        value = _text_of(value[0].get("content"))
    if not isinstance(value, str):
        raise ValueError(f"{name} is a {type(value).__name__}; expected text or one assistant message")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    return value


def _read_images(raw: Mapping[str, Any], root: Path | None) -> list[Image.Image]:
    values = raw.get("images") if raw.get("images") is not None else raw.get("image")
    if values is None:
        return []
    return [load_image(value, root=root) for value in (values if isinstance(values, list) else [values])]


def _as_messages(prompt: Any) -> list[Message]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"prompt is a {type(prompt).__name__}; expected text or a list of messages")
    with expected_form("a message"):
        return [Message(role=str(message["role"]), content=_parts(message["content"])) for message in prompt]


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    # datasets fills absent keys with None: keep only what belongs to each part.
    parts = [{"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": part["type"]} for part in content]
    for part in parts:
        if not isinstance(part.get("text", ""), str):
            raise ValueError(f"a text part holds a {type(part['text']).__name__}; expected text")
    return parts


def _text_of(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    with expected_form("a message"):
        return "".join(part.get("text") or "" for part in content)


def _place_images(messages: list[Message], num_images: int) -> list[Message]:
    """Give the first user turn the placeholders that the prompt lacks; images stand before the text, as in LLaVA."""
    written = 0
    for message in messages:
        for part in message["content"]:
            if part["type"] == "text":
                # Written in the text, as LLaVA's files do: the placeholder moves to the front of the turn.
                written += part["text"].count("<image>")
                part["text"] = part["text"].replace("<image>\n", "").replace("\n<image>", "").replace("<image>", "")
    placed = sum(part["type"] == "image" for message in messages for part in message["content"])
    if placed == 0 and num_images:
        user = next((message for message in messages if message["role"] == "user"), None)
        if user is None:
            raise ValueError("prompt has images and no user turn to place them in")
        user["content"] = [{"type": "image"} for _ in range(num_images)] + user["content"]
    elif placed != num_images or (written and not num_images):
        raise ValueError(f"prompt has {placed or written} image placeholders for {num_images} images")
    return messages

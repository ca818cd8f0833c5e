"""Conversations as people write them, in one form: messages made of parts, and the images in the order of their places.

Read are TRL's and OpenAI's messages (``role``, ``content``), LLaVA's and ShareGPT's (``from``, ``value``), and plain text; a message
holds text or parts. What has no place in this form is refused by name: nothing of a row is left out without a word.
"""

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, TypedDict

from mmalign.data.images import IMAGE_KEYS
from mmalign.errors import UserError

IMAGE_TAG = "<image>"
"""How LLaVA's files write the place of an image into a text."""

_ROLES = {"human": "user", "gpt": "assistant"}
# Hints to a server of how finely to look; a local processor has its own setting.
_UNUSED_KEYS = ("detail",)


class Message(TypedDict):
    """One turn. ``content`` is plain text or a list of ``{"type": "image"}`` / ``{"type": "text", "text": ...}``."""

    role: str
    content: Any


def read_messages(value: Any, what: str) -> list[Message]:
    """Bring a conversation to one form: every message with a list of parts. An image part keeps its own picture under ``image``.

    Args:
        value: Plain text, which is a user's turn, a list of messages, or one message alone.
        what: Name of the column, for errors.

    Raises:
        ValueError: If something in it can't be read, with its name.
    """
    if isinstance(value, str):
        _refuse_json(value, what)
        value = [{"role": "user", "content": value}]
    value = list_messages(value)
    if not isinstance(value, list) or not value:
        raise UserError(f"{what} is {_kind(value)}; expected text or a list of messages")
    return [_message(message, what) for message in value]


def list_messages(value: Any) -> Any:
    """Bring one message alone to a list, and messages that ``datasets`` stored key by key (a Sequence of a dict); others stay."""
    if not isinstance(value, Mapping):
        return value
    if not value or not all(isinstance(held, list) for held in value.values()):
        return [value]
    lengths = {str(key): len(held) for key, held in value.items() if held}
    if len(set(lengths.values())) > 1:
        raise UserError(f"messages stored key by key differ in number: {', '.join(f'{n} {key}' for key, n in lengths.items())}")
    return [dict(zip(lengths, held, strict=True)) for held in zip(*(value[key] for key in lengths), strict=True)]


def place_images(messages: Sequence[Message], images: Sequence[Any], what: str = "prompt") -> tuple[list[Message], list[Any]]:
    """Find the places of a row's images, and their order.

    An image stands where its part stands, or where ``<image>`` is written into a turn that is no assistant's. Without a place, all images
    stand in front of the first user turn, as in LLaVA. Assistant turns are left as they are.

    Args:
        messages: From ``read_messages``.
        images: Of the row's column.
        what: Name of the column, for errors.

    Returns:
        The messages, each image a bare ``{"type": "image"}``, and the images in the order of their places.

    Raises:
        ValueError: If there are more or fewer places than images, with both numbers.
    """
    placed = [message if message["role"] == "assistant" else _with_places(message) for message in messages]
    parts = [part for message in placed for part in message["content"] if part["type"] == "image"]
    bare = sum("image" not in part for part in parts)
    if images and not parts:
        user = next((message for message in placed if message["role"] == "user"), None)
        if user is None:
            raise UserError(f"{what} has images and no user turn to place them in")
        user["content"] = [{"type": "image"} for _ in images] + user["content"]
        return placed, list(images)
    if bare != len(images):
        own = f" beside {len(parts) - bare} that hold their own" if bare < len(parts) else ""
        raise UserError(f"{what} has {bare} image placeholders{own} for {len(images)} images")
    rest = iter(_in_order([part for part in parts if "image" not in part], images, what))
    ordered = [part["image"] if "image" in part else next(rest) for part in parts]
    bared = [
        Message(role=m["role"], content=[{"type": "image"} if part["type"] == "image" else part for part in m["content"]]) for m in placed
    ]
    return bared, ordered


def _in_order(places: Sequence[Mapping[str, Any]], images: Sequence[Any], what: str) -> list[Any]:
    """The images of the bare places: those that the places name by number, or one by one."""
    numbers = [place.get("index") for place in places]
    if all(number is None for number in numbers):
        return list(images)
    if set(numbers) != set(range(len(images))):
        raise UserError(f"the image parts of {what} have the indices {numbers}; expected each of the row's {len(images)} images once")
    return [images[number] for number in numbers if number is not None]


def text_of(message: Message) -> str:
    """Join the text of a message's parts."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def without_images(messages: Sequence[Message]) -> list[Message]:
    """The same turns without the places of images."""
    placed = [message if message["role"] == "assistant" else _with_places(message) for message in messages]
    return [Message(role=m["role"], content=[part for part in m["content"] if part["type"] == "text"]) for m in placed]


def shared_beginning(first: Sequence[Message], second: Sequence[Message]) -> list[Message]:
    """Return the messages that both conversations begin with."""
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))]


def _message(message: Any, what: str) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"{what} holds {_kind(message)} where a message with role and content belongs: {_shown(message)}")
    names = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    missing = [name for name in names if message.get(name) is None]
    if missing:
        held = ", ".join(str(key) for key, value in message.items() if value is not None) or "nothing"
        raise UserError(f"a message of {what} has no {' and no '.join(missing)}; it has {held}")
    extra = [str(key) for key, value in message.items() if key not in names and not _is_empty(value)]
    if extra:
        raise UserError(f"a message of {what} has {', '.join(extra)}, which can't be used; expected {' and '.join(names)} alone")
    role = message[names[0]]
    role = _ROLES.get(str(role), role) if names[0] == "from" else role
    if role not in ("system", "user", "assistant"):
        raise UserError(f"a message of {what} has the role {role!r}; expected system, user or assistant")
    parts = _parts(message[names[1]], what)
    if role == "assistant" and any(part["type"] == "image" for part in parts):
        raise UserError(f"an assistant turn of {what} holds an image; images in answers can't be trained on")
    return Message(role=role, content=parts)


def _parts(content: Any, what: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        _refuse_json(content, what)
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise UserError(f"the content of a message of {what} is {_kind(content)}; expected text or a list of parts")
    return [_part(part, what) for part in content]


def _part(part: Any, what: str) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise UserError(f"{what} holds {_kind(part)} where a part with its type belongs: {_shown(part)}")
    # Arrow gives every part the keys of all others, empty.
    held = {key: value for key, value in part.items() if not _is_empty(value) or key == "text" == part.get("type")}
    kind = held.pop("type", None) or ("text" if "text" in held else "image" if any(key in held for key in IMAGE_KEYS) else None)
    names = {"text": ("text",), "image": IMAGE_KEYS, "image_url": ("image_url",)}.get(str(kind))
    if names is None:
        raise UserError(f"a part of type {kind} in {what} can't be read; use parts of text and image, and the column images")
    index = held.pop("index", None) if kind == "image" else None
    if index is not None and type(index) is not int:
        raise UserError(f"an image part of {what} has the index {index!r}; expected a number")
    extra = [str(key) for key in held if key not in (*names, *_UNUSED_KEYS)]
    if extra:
        raise UserError(f"a part of type {kind} in {what} has {', '.join(extra)}, which can't be used")
    if kind == "text":
        if not isinstance(held.get("text"), str):
            raise UserError(f"a text part of {what} holds {_kind(held.get('text'))}; expected text")
        return {"type": "text", "text": held["text"]}
    values = [(key, held[key]) for key in names if key in held]
    if len(values) > 1:
        raise UserError(f"an image part of {what} has {' and '.join(key for key, _ in values)}; expected one of them")
    if not values:
        return {"type": "image"} if index is None else {"type": "image", "index": index}
    key, value = values[0]
    return {"type": "image", "image": value if key == "image" else {key: value}}


def _with_places(message: Message) -> Message:
    return Message(role=message["role"], content=[piece for part in message["content"] for piece in _split(part)])


def _split(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Cut a text at the places that are written into it; the line break that sets one apart belongs to it."""
    if part["type"] != "text" or IMAGE_TAG not in part["text"]:
        yield part
        return
    first, *others = part["text"].split(IMAGE_TAG)
    texts = [first, *(text.removeprefix("\n") for text in others)]
    if not texts[-1]:
        texts[-2] = texts[-2].removesuffix("\n")
    for number, text in enumerate(texts):
        if number:
            yield {"type": "image"}
        if text:
            yield {"type": "text", "text": text}


def _refuse_json(text: str, what: str) -> None:
    """A conversation that was written to a text: trained on as it stands, it teaches brackets and quotes."""
    value = _read_source(text)
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, dict) and ({"role", "from"} & first.keys() or first.get("type") in ("text", "image", "image_url")):
        raise UserError(
            f"{what} is source text of messages: {_shown(text)}; store the messages themselves (json.loads of this text, or "
            "ast.literal_eval where Python wrote it)"
        )


def _read_source(text: str) -> Any:
    """Read a list or mapping that was written to a text as JSON, or as Python and NumPy show one; None of another text."""
    if not re.match(r"\s*(?:\[\s*)?\{\s*['\"]", text):
        return None
    # NumPy writes no commas.
    for read, form in ((json.loads, text), (ast.literal_eval, re.sub(r"\}\s+\{", "}, {", text.strip()))):
        with contextlib.suppress(RecursionError, MemoryError, SyntaxError, ValueError):
            return read(form)
    return None


def _is_empty(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return value is None or (isinstance(value, (str, list, tuple)) and len(value) == 0)


def _kind(value: Any) -> str:
    return "nothing" if value is None else "an empty list" if value == [] else f"a {type(value).__name__}"


def _shown(value: Any) -> str:
    return repr(value if isinstance(value, str) and len(value) < 80 else f"{str(value)[:80]}...")

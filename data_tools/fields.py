"""Fields of a record as a public set writes it, each read with an error that names what is there."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.data.messages import IMAGE_TAG
from mmalign.data.numbers import is_finite
from mmalign.data.rows import IMAGES_OTHER
from mmalign.errors import UserError

Messages = list[dict[str, str]]
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def field(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """Return a field that must be there and of this kind."""
    value = record.get(name)
    if value is None:
        raise UserError(f"no field {name}{fields_of(record)}")
    if not isinstance(value, kind):
        raise UserError(f"field {name} is a {type(value).__name__}; expected {_kind_name(kind)}")
    return value


def objects(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return a field that lists objects."""
    values = field(record, name, list)
    odd = next((value for value in values if not isinstance(value, dict)), None)
    if odd is not None:
        raise UserError(f"field {name} holds a {type(odd).__name__}; expected objects")
    return values


def number(record: Mapping[str, Any], name: str) -> float:
    """Return a field that is a finite number."""
    value = field(record, name, (int, float))
    if not is_finite(value):
        raise UserError(f"field {name} is {value}; expected a finite number")
    return float(value)


def images_of(record: Mapping[str, Any], *names: str) -> list[Any]:
    """Return the images of the first of these fields that is there, whether it holds one or a list; none where none is there."""
    value: Any = next((record[name] for name in names if record.get(name) is not None), [])
    return value if isinstance(value, list) else [value]


def other_images(record: Mapping[str, Any], images: list[Any]) -> list[Any] | None:
    """Return the images that stand against a row's own; None where there are none, or the same ones are named again."""
    others = images_of(record, IMAGES_OTHER, "rejected_images")
    return others if others and others != images else None


def turns(conversation: list[Any]) -> Messages:
    """LLaVA's turns as messages, with the places of images. Some files nest the conversation in one more list."""
    if len(conversation) == 1 and isinstance(conversation[0], list):
        conversation = conversation[0]
    found = []
    for turn in objects({"conversation": conversation}, "conversation"):
        role = turn.get("from")
        if role not in ROLES:
            raise UserError(f"a turn is from {role!r}; expected one of {', '.join(ROLES)}")
        found.append({"role": ROLES[role], "content": field(turn, "value", str)})
    return found


def place(said: Messages, images: Sequence[Any]) -> Messages:
    """Drop the place of a row's only image, which is the chat template's business; the text alone tells the places of several."""
    if len(images) != 1:
        return said
    return [{**turn, "content": _without_place(turn["content"])} if turn["role"] == "user" else turn for turn in said]


def _without_place(text: str) -> str:
    for form in (f"{IMAGE_TAG}\n", f"\n{IMAGE_TAG}", IMAGE_TAG):
        text = text.replace(form, "")
    return text


def user(text: str, images: Sequence[Any]) -> Messages:
    """A question about images as a conversation of one turn."""
    return place([{"role": "user", "content": text}], images)


def assistant(text: str) -> Messages:
    """An answer as a conversation of one turn."""
    return [{"role": "assistant", "content": text}]


def fields_of(record: Mapping[str, Any]) -> str:
    """Tell which fields a record has, for the end of an error."""
    return f"; the record has {', '.join(map(str, record)) or 'no fields'}"


def join_source(set_name: str, part: str) -> str:
    """Name a set, or a part of it."""
    return f"{set_name}/{part}" if part else set_name


def _kind_name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__

"""Rows of preference pairs, of scored lists and of chats: TRL-compatible columns, checked one by one.

A pair has ``images``, ``prompt``, ``chosen`` and ``rejected`` (conversational or plain text), and optionally ``id``, ``source`` and
``ends`` (false: the answers are cut inside the assistant's turn), ``images_other`` (as many images of another scene) and ``chosen_other``
(the right answer for those). A list has ``responses`` and ``scores`` for the two. Items are spans inside one ``response``: ``items``,
[start, end) in characters, and ``relevance``. A chat has ``images`` and ``messages``. A question has ``images`` and ``prompt`` or
``question``. All accept ``image`` for ``images``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.data.images import load_image
from mmalign.data.messages import (
    Message,
    list_messages,
    place_images,
    read_messages,
    shared_beginning,
    text_of,
    without_images,
)
from mmalign.data.numbers import is_finite
from mmalign.errors import UserError

PAIR_COLUMNS = ("chosen", "rejected")
LIST_COLUMNS = ("prompt", "responses", "scores")
ITEM_COLUMNS = ("prompt", "response", "items", "relevance")
CHAT_COLUMNS = ("messages",)
OTHER_NAMES = {"messages": "conversations", "images": "image"}
"""Columns that are read under another name as well: LLaVA's files have ``conversations``."""
IMAGES_OTHER, CHOSEN_OTHER = "images_other", "chosen_other"
ROW_COLUMNS = (
    "id", "source", "system", "prompt", "question", "images", "image", "conversations", "ends", "ends_chosen", "ends_rejected",
    CHOSEN_OTHER, "codes", "codes_chosen", "codes_rejected", "codes_responses", "codes_of",
)  # fmt: skip
"""What a row may have beside the columns that it must have."""

_SCORES = ("difficulty", "easiness_", "gap_", "reference_", "teacher_")

_UNUSABLE = {
    "rejected_images": "the rejected response was written about other images than the chosen one (convert_pairs.py ms-swift reads them)",
    "chosen_images": "the chosen response was written about other images than the rejected one",
    "tools": "the prompt was written with tools",
    "history": "the turns before stand apart from the conversation (put them into it)",
    **dict.fromkeys(("videos", "video"), "videos can't be read"),
    **dict.fromkeys(("audios", "audio"), "sound can't be read"),
}
"""Columns that change what a row means, with the reason that a row with one is refused."""


@dataclass(frozen=True)
class PairRow:
    """One preference pair, decoded and checked."""

    id: str
    images: list[Image.Image]
    prompt: list[Message]
    chosen: str
    rejected: str
    source: str
    ends: tuple[bool, bool] = (True, True)
    """Whether chosen and rejected end the assistant's turn; False: they are cut inside it."""
    images_other: list[Image.Image] = field(default_factory=list)
    """As many images of another scene; empty where they were not asked for."""
    chosen_other: str = ""
    """The right answer for those: the rejected one where the row has no other."""


@dataclass(frozen=True)
class ListRow:
    """Two or more scored responses to one prompt, decoded and checked."""

    id: str
    images: list[Image.Image]
    prompt: list[Message]
    responses: list[str]
    scores: list[float]
    ends: bool = True
    """Whether the responses end the assistant's turn."""
    sampled: bool = False
    """Whether they are what a policy sampled: texts may be equal."""


@dataclass(frozen=True)
class ItemsRow:
    """Two or more items that one response names, each with its relevance, decoded and checked."""

    id: str
    images: list[Image.Image]
    prompt: list[Message]
    response: str
    items: list[tuple[int, int]]
    """[start, end) in characters of the response, in order."""
    relevance: list[float]
    ends: bool = True
    """Whether the response ends the assistant's turn."""


@dataclass(frozen=True)
class ChatRow:
    """One conversation about its images, decoded and checked; it ends with an assistant turn."""

    id: str
    images: list[Image.Image]
    messages: list[Message]


@dataclass(frozen=True)
class QuestionRow:
    """A prompt without an answer, decoded and checked; it ends with a user's turn."""

    id: str
    images: list[Image.Image]
    prompt: list[Message]


def check_columns(columns: Iterable[str], required: Iterable[str], *, what: str) -> None:
    """Check that a data set has the columns that a row needs.

    Raises:
        ValueError: With the missing and the present names.
    """
    columns = list(columns)
    missing = [name for name in required if name not in columns and OTHER_NAMES.get(name) not in columns]
    if missing:
        raise UserError(
            f"{what} has no column {', '.join(missing)}; it has {', '.join(columns)}. Needed: {', '.join(required)} "
            "(docs/formats.md shows the forms; mmalign data convert and convert-chats read other sets)"
        )


def row_id(raw: Mapping[str, Any], *, index: int) -> str:
    """Return the row's own id, or its position as text."""
    return str(raw["id"]) if raw.get("id") is not None else str(index)


def unused_columns(columns: Iterable[str], used: Iterable[str]) -> list[str]:
    """List the columns of a data set that nothing reads, but for the scores that mmalign itself has written beside the rows."""
    found = set(columns) - set(used) - set(ROW_COLUMNS) - set(_UNUSABLE)
    return sorted(name for name in found if not name.startswith(_SCORES))


def read_pair(
    raw: Mapping[str, Any], *, index: int, image_root: Path | None = None, with_images: bool = True, with_other: bool = False
) -> PairRow:
    """Decode and check one preference pair.

    Args:
        raw: A row as ``datasets`` gives it. The prompt may stand under ``conversations``, as in LLaMA-Factory's files. Without it,
            chosen and rejected are whole conversations, and what they begin with together is the prompt.
        index: Position in the data set: the id of a row without one.
        image_root: Folder that relative image paths start from.
        with_images: False reads the words alone, without the images and their places.
        with_other: Whether the other scene's images are read too.

    Returns:
        The checked pair; its prompt has one image placeholder for each image. A prompt that ends with an assistant's words is continued.

    Raises:
        ValueError: With the reason why the row can't be used.
    """
    prompt, chosen, rejected = split_pair(raw)
    if chosen == rejected:
        raise UserError("chosen and rejected are the same text")
    messages, images = _with_images(raw, prompt, image_root, "prompt") if with_images else (without_images(prompt), [])
    ends = tuple(_flag(raw, name, default=_flag(raw, "ends", default=True)) for name in ("ends_chosen", "ends_rejected"))
    source = str(raw.get("source") or "all")
    others = _read_other(raw, images, image_root) if with_other else []
    answer = rejected if raw.get(CHOSEN_OTHER) is None else response_text(raw[CHOSEN_OTHER], CHOSEN_OTHER)
    return PairRow(row_id(raw, index=index), images, messages, chosen, rejected, source, (ends[0], ends[1]), others, answer)


def _read_other(raw: Mapping[str, Any], images: Sequence[Image.Image], root: Path | None) -> list[Image.Image]:
    values = raw.get(IMAGES_OTHER)
    given = [] if values is None else values if isinstance(values, list) else [values]
    if not images or len(given) != len(images):
        raise UserError(f"{IMAGES_OTHER} has {len(given)} images beside the row's {len(images)}; expected as many, and one at least")
    return [load_image(value, root=root) for value in given]


def read_list(raw: Mapping[str, Any], *, index: int, image_root: Path | None = None, sampled: bool = False) -> ListRow:
    """Decode and check one prompt with its scored responses. Arguments and errors as in ``read_pair``.

    ``sampled`` ones may be alike: a policy's own answers, with nothing left out.
    """
    for name in ("responses", "scores"):
        if not isinstance(raw[name], list):
            raise UserError(f"{name} is a {type(raw[name]).__name__}; expected a list")
    responses = [response_text(value, f"response {number}") for number, value in enumerate(raw["responses"])]
    scores = list(raw["scores"])
    if len(responses) < 2 or len(scores) != len(responses):
        raise UserError(f"row has {len(responses)} responses and {len(scores)} scores; expected two or more responses, each with a score")
    check_scores(scores, what="response", sampled=sampled)
    if not sampled and len(set(responses)) < len(responses):
        raise UserError("two responses are the same text")
    prompt, images = _with_images(raw, read_prompt(raw["prompt"], "prompt"), image_root, "prompt")
    values = [float(score) for score in scores]
    return ListRow(row_id(raw, index=index), images, prompt, responses, values, _flag(raw, "ends", default=True), sampled)


def check_scores(scores: Sequence[Any], *, what: str, sampled: bool) -> None:
    """Raise ``UserError`` if scores are no finite numbers, or all the same: ``sampled`` lists alone may lack a preference."""
    for score in scores:
        if not is_finite(score):
            raise UserError(f"scores hold {score!r}; expected finite numbers")
    if not sampled and len(set(scores)) == 1:
        raise UserError(f"every {what} has score {scores[0]:g}: there is no preference to learn")


def read_items(raw: Mapping[str, Any], *, index: int, image_root: Path | None = None) -> ItemsRow:
    """Decode and check one response whose items have a relevance. Arguments and errors as in ``read_pair``."""
    response = response_text(raw["response"], "response")
    for name in ("items", "relevance"):
        if not isinstance(raw[name], list):
            raise UserError(f"{name} is a {type(raw[name]).__name__}; expected a list")
    relevance = list(raw["relevance"])
    if len(raw["items"]) < 2 or len(relevance) != len(raw["items"]):
        raise UserError(f"row has {len(raw['items'])} items and {len(relevance)} grades of relevance; expected two or more, each with one")
    for grade in relevance:
        if not is_finite(grade):
            raise UserError(f"relevance holds {grade!r}; expected finite numbers")
    if len(set(relevance)) == 1:
        raise UserError(f"every item has relevance {relevance[0]:g}: there is no preference to learn")
    at = 0
    for item in raw["items"]:
        if not (isinstance(item, list) and len(item) == 2 and all(type(place) is int for place in item)):
            raise UserError(f"an item is {item!r}; expected [start, end) in characters of the response")
        if not at <= item[0] < item[1] <= len(response):
            raise UserError(f"item {item} is empty, out of order, or outside the response; expected {at} <= start < end <= {len(response)}")
        at = item[1]
    prompt, images = _with_images(raw, read_prompt(raw["prompt"], "prompt"), image_root, "prompt")
    items, grades = [(start, end) for start, end in raw["items"]], [float(grade) for grade in relevance]
    return ItemsRow(row_id(raw, index=index), images, prompt, response, items, grades, _flag(raw, "ends", default=True))


def read_question(raw: Mapping[str, Any], *, index: int, image_root: Path | None = None) -> QuestionRow:
    """Decode and check one prompt that is to be answered, under ``prompt`` or ``question``. Arguments and errors as in ``read_pair``."""
    name = next((name for name in ("prompt", "question") if raw.get(name) is not None), None)
    if name is None:
        raise UserError("the row has no prompt; expected text or messages under prompt or question")
    prompt = read_prompt(raw[name], name)
    if not any(text_of(message).strip() for message in prompt):
        raise UserError(f"{name} holds no words")
    if prompt[-1]["role"] != "user":
        raise UserError(f"{name} ends with the words of the {prompt[-1]['role']}; expected a user's turn, which is answered")
    placed, images = _with_images(raw, prompt, image_root, name)
    return QuestionRow(row_id(raw, index=index), images, placed)


def read_chat(raw: Mapping[str, Any], *, index: int, image_root: Path | None = None) -> ChatRow:
    """Decode and check one conversation. Arguments and errors as in ``read_pair``."""
    name = "messages" if raw.get("messages") is not None else "conversations" if "conversations" in raw else "messages"
    messages = read_messages(raw[name], name)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(f"{name} must hold a user turn and end with an assistant turn")
    first = next(message["role"] for message in messages if message["role"] != "system")
    if first != "user":
        raise UserError(f"{name} begin with an assistant turn; a user turn comes first")
    for message in messages:
        if message["role"] == "assistant" and not text_of(message).strip():
            raise UserError("an assistant turn is empty")
    placed, images = _with_images(raw, messages, image_root, name)
    return ChatRow(row_id(raw, index=index), images, placed)


def response_text(value: Any, name: str) -> str:
    """Return the text of a response given as a string or as one assistant message, alone or in a list.

    Raises:
        ValueError: If it is empty, has several turns, or is not text.
    """
    value = list_messages(value)
    if not isinstance(value, (str, list)):
        raise UserError(f"{name} is a {type(value).__name__}; expected text or one assistant message")
    return _answer([Message(role="assistant", content=value)] if isinstance(value, str) else value, name)


def _answer(messages: Sequence[Any], name: str) -> str:
    read = read_messages(list(messages), name)
    if len(read) != 1 or read[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in read)
        raise UserError(f"{name} must be one assistant message; it has {len(read)} messages ({roles})")
    text = text_of(read[0])
    if not text.strip():
        raise UserError(f"{name} is empty")
    return text


def split_pair(raw: Mapping[str, Any]) -> tuple[list[Message], str, str]:
    """Part a pair into prompt and two responses, whichever of the three repeat the prompt; without its images and ``system``.

    Raises:
        ValueError: With the reason why the row can't be used.
    """
    sides = [list_messages(raw[name]) for name in PAIR_COLUMNS]
    what = next((name for name in ("prompt", "conversations") if raw.get(name) is not None), None)
    if what is not None:
        prompt = read_prompt(raw[what], what)
        chosen, rejected = (_behind(prompt, side, name) for side, name in zip(sides, PAIR_COLUMNS, strict=True))
        return prompt, chosen, rejected
    if any(isinstance(side, str) for side in sides):
        raise UserError(
            "the row has no prompt, and chosen or rejected is plain text; put what stands before the answers into prompt, "
            "or convert the set (mmalign data convert)"
        )
    first, second = (read_messages(side, name) for side, name in zip(sides, PAIR_COLUMNS, strict=True))
    prompt = shared_beginning(first, second)
    if len(prompt) in (len(first), len(second)):
        raise UserError("chosen and rejected are the same conversation, or one is the beginning of the other")
    if not prompt:
        raise UserError("the row has no prompt, and chosen and rejected begin with different messages")
    chosen, rejected = (_answer(side[len(prompt) :], name) for side, name in zip((first, second), PAIR_COLUMNS, strict=True))
    return prompt, chosen, rejected


def read_prompt(value: Any, what: str) -> list[Message]:
    """Read the turns before the answer. An assistant's turn without words at their end is the answer's own, still to be written.

    Raises:
        ValueError: If there are none, or something in them can't be read.
    """
    messages = read_messages(value, what)
    if messages[-1]["role"] == "assistant" and not text_of(messages[-1]):
        messages.pop()
    if not messages:
        raise UserError(f"{what} holds no words")
    return messages


def _behind(prompt: list[Message], side: Any, name: str) -> str:
    """The response, where its conversation may repeat the prompt."""
    if isinstance(side, list) and len(side) > 1:
        read = read_messages(side, name)
        if read[: len(prompt)] != prompt:
            raise UserError(f"{name} has {len(read)} messages and does not begin with the prompt; expected one assistant message")
        return _answer(read[len(prompt) :], name)
    return response_text(side, name)


def _with_images(raw: Mapping[str, Any], messages: list[Message], root: Path | None, what: str) -> tuple[list[Message], list[Image.Image]]:
    placed, ordered = place_row_images(raw, messages, what)
    return placed, [load_image(value, root=root) for value in ordered]


def place_row_images(raw: Mapping[str, Any], messages: list[Message], what: str) -> tuple[list[Message], list[Any]]:
    """Give a row's turns its ``system`` and the places of its images.

    Args:
        raw: The row.
        messages: Its turns, from ``read_prompt``, ``split_pair`` or ``read_messages``.
        what: Name of their column, for errors.

    Returns:
        The turns, and the images in the order of their places, undecoded.

    Raises:
        ValueError: If places and images don't fit together, or a column changes what the row means.
    """
    for name, reason in _UNUSABLE.items():
        if raw.get(name):
            raise UserError(f"the row has {name}: {reason}, which can't be trained on here")
    given = [_images_under(raw, name) for name in ("images", "image")]
    if all(given) and given[0] != given[1]:
        raise UserError("the row has images, and others under image; expected all of its images in one of them")
    return place_images(_with_system(raw, messages), given[0] or given[1], what)


def _images_under(raw: Mapping[str, Any], name: str) -> list[Any]:
    values = raw.get(name)
    if isinstance(values, Mapping) and not any(values.values()):
        # How Parquet of other programs holds that a row has no image: a struct of nulls.
        return []
    return [] if values is None else values if isinstance(values, list) else [values]


def _with_system(raw: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Put the words of a column of their own, as ShareGPT's files have them, in front."""
    if not raw.get("system"):
        return messages
    system = read_messages([{"role": "system", "content": raw["system"]}], "system")
    if messages[0]["role"] != "system":
        return [*system, *messages]
    if messages[0] != system[0]:
        raise UserError("the row has a system prompt in the column system and another one in its messages; expected one of them")
    return messages


def _flag(raw: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{name} is {value!r}; expected true or false")
    return default if value is None else value

"""How public instruction sets write down their conversations: LLaVA's form, and the two sets that have forms of their own.

The fields that each function reads, and where they were looked up, are listed in docs/data.md.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from data_tools.fields import Messages, assistant, field, images_of, turns
from mmalign.data.messages import IMAGE_TAG
from mmalign.errors import UserError

_FRONT = re.compile(rf"(?:\s*{IMAGE_TAG})*")
LLAVA_SETS = (
    "llava-pretrain", "llava-mix665k", "sharegpt4v", "allava", "svit", "lvis-instruct4v", "lrv", "mimic-it", "mobilevlm-v2", "internvl-sft",
)  # fmt: skip
"""The sets of LLaVA-MoD's stages."""


@dataclass(frozen=True)
class Chat:
    """One conversation as a set has it; images are bytes, paths or dicts of them, not yet looked at."""

    id: str
    source: str
    images: list[Any]
    messages: Sequence[Any]

    def columns(self) -> dict[str, Any]:
        """The row but for its images."""
        return {"id": self.id, "messages": self.messages, "source": self.source}

    def image_columns(self) -> dict[str, list[Any]]:
        """The row's images, undecoded."""
        return {"images": self.images}


def llava(record: Mapping[str, Any], default_id: str, *, source: str = "llava") -> Chat:
    """LLaVA's form: turns from human and gpt, with ``<image>`` at the place of an image.

    Images without a place stand before the first user turn. Places that are all there anyway are left to the chat template.

    Raises:
        ValueError: If there are more places than images, or the turns are not a user's and an assistant's by turns.
    """
    if record.get("video") is not None:
        raise UserError("the record has a video, which can't be read")
    said = turns(field(record, "conversations", list))
    _check_turns(said)
    images = images_of(record, "image", "images")
    return Chat(str(record.get("id", default_id)), source, images, _placed(said, len(images)))


def lrv(record: Mapping[str, Any], default_id: str) -> Chat:
    """LRV-Instruction (arXiv:2306.14565): LLaVA's form, or its own files of a question and an answer on a Visual Genome image."""
    if "conversations" in record:
        return llava(record, default_id, source="lrv")
    image = images_of(record, "image") or [f"{field(record, 'image_id', (str, int))}.jpg"]
    return _answered(record, default_id, source="lrv", question="question", images=image)


def mimic_it(record: Mapping[str, Any], default_id: str) -> Chat:
    """MIMIC-IT (arXiv:2306.05425): LLaVA's form, or the hub's rows of an instruction and an answer with their images."""
    if "conversations" in record:
        return llava(record, default_id, source="mimic-it")
    return _answered(record, default_id, source="mimic-it", question="instruction", images=images_of(record, "images"))


CHAT_SETS: dict[str, Callable[[Mapping[str, Any], str], Chat]] = {
    "llava": llava,
    **{name: partial(llava, source=name) for name in LLAVA_SETS},
    "lrv": lrv,
    "mimic-it": mimic_it,
}


def _answered(record: Mapping[str, Any], default_id: str, *, source: str, question: str, images: list[Any]) -> Chat:
    row_id = str(record["id"]) if record.get("id") is not None else default_id
    said: Messages = [{"role": "user", "content": field(record, question, str)}, *assistant(field(record, "answer", str))]
    _check_turns(said)
    return Chat(row_id, source, images, _placed(said, len(images)))


def _check_turns(said: Messages) -> None:
    """Find what no chat can be trained on with: turns out of order, or without words."""
    spoken = [turn for turn in said if turn["role"] != "system"]
    if any(turn["role"] == "system" for turn in said[1:]):
        raise UserError("a system turn stands behind other turns")
    if not spoken:
        raise UserError("the conversation has no turns")
    if spoken[0]["role"] != "user":
        raise UserError("the conversation begins with an assistant turn; a user turn comes first")
    doubled = next((second["role"] for first, second in pairwise(spoken) if first["role"] == second["role"]), None)
    if doubled:
        raise UserError(f"two {doubled} turns follow each other")
    if spoken[-1]["role"] != "assistant":
        raise UserError("the conversation has no answer to its last turn")
    empty = next((turn["role"] for turn in said if not turn["content"].strip()), None)
    if empty:
        raise UserError(f"{'an' if empty == 'assistant' else 'a'} {empty} turn is empty")


def _placed(said: Messages, num_images: int) -> Messages:
    """Count the places of images, and leave those in the text that it alone can tell: images in front have the place of those without."""
    found = sum(turn["content"].count(IMAGE_TAG) for turn in said if turn["role"] != "assistant")
    if found > num_images:
        raise UserError(f"{found} places of images ({IMAGE_TAG}) for {num_images} images")
    first = next(turn for turn in said if turn["role"] == "user")
    front = _FRONT.match(first["content"])
    assert front is not None
    behind = first["content"][front.end() :]
    if front.group().count(IMAGE_TAG) == found and behind.strip():
        text = behind.removeprefix("\n") if found else first["content"]
    else:
        text = f"{IMAGE_TAG}\n" * (num_images - found) + first["content"]
    return [{**turn, "content": text} if turn is first else turn for turn in said]

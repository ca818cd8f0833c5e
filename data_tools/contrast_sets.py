"""Sets whose pairs name another image beside their own: S-VCO's contrasts, and ms-swift's rows with ``rejected_images``.

The fields that each function reads, and where they were looked up, are listed in docs/data.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

from data_tools.fields import Messages, assistant, field, fields_of, images_of, other_images, place, user
from data_tools.pair_sets import Pair, without_answer
from mmalign.data.rows import CHOSEN_OTHER
from mmalign.errors import UserError


def s_vco(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """S-VCO (arXiv:2502.13928): two images that differ in one thing, with a text each; a row for each side.

    Each side's own text is chosen, the other image's is rejected, and is what is right for the other image.
    """
    system = [{"role": "system", "content": record["system_prompt"]}] if record.get("system_prompt") else []
    sides = [(images_of(record, f"{name}_images"), assistant(field(record, f"{name}_response", str))) for name in ("chosen", "rejected")]
    prompt = system + user(field(record, "instruction_prompt", str), sides[0][0])
    row_id = str(record.get("id", default_id))
    return [
        Pair(f"{row_id}/{i}", "s-vco", images, prompt, own, other, images_other=images_other, extra={CHOSEN_OTHER: other})
        for i, ((images, own), (images_other, other)) in enumerate((sides, sides[::-1]), start=1)
    ]


def ms_swift(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """ms-swift's preference rows: a conversation, and what stands in the place of its last turn, its images, or both.

    Raises:
        ValueError: If the two differ before the last turn, or in their images alone: such a row has no rejected text.
    """
    images = images_of(record, "images", "image")
    said = place(_plain(field(record, "messages", list)), images)
    prompt = without_answer(said)
    if record.get("rejected_messages") is not None:
        rejected = place(_plain(field(record, "rejected_messages", list)), images)
        if without_answer(rejected) != prompt:
            raise UserError("messages and rejected_messages differ before the last turn: there is no common prompt")
        answer = rejected[-1:]
    elif record.get("rejected_response") is not None:
        answer = assistant(field(record, "rejected_response", str))
    else:
        raise UserError(f"no field rejected_response or rejected_messages: the row rejects no text{fields_of(record)}")
    row_id = str(record["id"]) if record.get("id") is not None else default_id
    return [Pair(row_id, "ms-swift", images, prompt, said[-1:], answer, images_other=other_images(record, images))]


def _plain(messages: list[Any]) -> Messages:
    found = []
    for message in messages:
        if not isinstance(message, dict):
            raise UserError(f"messages hold a {type(message).__name__}; expected objects")
        found.append({name: field(message, name, str) for name in ("role", "content")})
    return found


CONTRAST_SETS: dict[str, Callable[[Mapping[str, Any], str], list[Pair]]] = {"s-vco": s_vco, "ms-swift": ms_swift}

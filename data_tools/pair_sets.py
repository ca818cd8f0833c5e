"""How each public set writes down its preferences: one small function a set, from a record of its own files to pairs.

The fields that each function reads, and where they were looked up, are listed in docs/data.md.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmalign.errors import UserError

Messages = list[dict[str, str]]
VLFEEDBACK_ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Pair:
    """One preference as a set has it; images are bytes, paths or dicts of them, not yet looked at."""

    id: str
    source: str
    images: list[Any]
    prompt: Any
    chosen: Any
    rejected: Any


def bpo(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """BPO (arXiv:2403.08730): every two completions of unequal score; the higher one is chosen."""
    completions = [(_number(c, "score"), _field(c, "response", str), str(c.get("type") or "")) for c in _objects(record, "completions")]
    images = [record["image"]] if record.get("image") is not None else []
    pairs = []
    for (i, first), (j, second) in itertools.combinations(enumerate(completions), 2):
        if first[0] != second[0]:
            better, worse = (first, second) if first[0] > second[0] else (second, first)
            pairs.append(
                Pair(
                    id=f"{record.get('id', default_id)}/{i}-{j}",
                    source=_join("bpo", worse[2]),
                    images=images,
                    prompt=_user(_field(record, "prompt", str)),
                    chosen=_assistant(better[1]),
                    rejected=_assistant(worse[1]),
                )
            )
    return pairs


def rlhf_v(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """RLHF-V (arXiv:2312.00849): question, chosen and rejected are a JSON text in one field."""
    text = record.get("text")
    if isinstance(text, str):
        try:
            text = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"field text is not JSON: {error}") from error
    if not isinstance(text, dict):
        raise UserError(f"field text is a {type(text).__name__}; expected JSON with question, chosen and rejected{_has(record)}")
    return [_plain_pair({**record, **text}, default_id, set_name="rlhf-v", id_field="idx", part_field="origin_dataset")]


def rlaif_v(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """RLAIF-V (arXiv:2405.17220): one pair per row."""
    return [_plain_pair(record, default_id, set_name="rlaif-v", id_field="idx", part_field="origin_dataset")]


def spa_vl(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """SPA-VL (arXiv:2406.12030): one pair per row; its validation split names the kind of harm."""
    return [_plain_pair(record, default_id, set_name="spa-vl", id_field="image_name", part_field="class1")]


def vlfeedback(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """VLFeedback (Silkie, arXiv:2312.10665): every two responses of unequal mean rating over its three aspects.

    A response that lacks a numeric rating takes no part. Images are those of the record, or ``ID.jpg``, as the set's archive names them.
    """
    row_id = str(_field(record, "id", (str, int)))
    image = record["image"] if record.get("image") is not None else f"{row_id}.jpg"
    completions = _objects({**record, "completions": _as_rows(record.get("completions"))}, "completions")
    rated = [(rating, _field(c, "response", str)) for c in completions if (rating := _mean_rating(c)) is not None]
    if len(rated) < 2:
        raise UserError(f"{len(rated)} responses with ratings of {', '.join(VLFEEDBACK_ASPECTS)}; expected at least two")
    images = [image]
    pairs = []
    for (i, first), (j, second) in itertools.combinations(enumerate(rated), 2):
        if first[0] != second[0]:
            better, worse = (first, second) if first[0] > second[0] else (second, first)
            prompt = _user(_field(record, "prompt", str))
            pairs.append(Pair(f"{row_id}/{i}-{j}", "vlfeedback", images, prompt, _assistant(better[1]), _assistant(worse[1])))
    return pairs


def llava_rlhf(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """LLaVA-RLHF (arXiv:2309.14525): two outputs in place of the last turn; ``preference`` says which is better, 1 or 2."""
    preference = record.get("preference")
    if preference not in (1, 2):
        raise UserError(f"preference is {preference!r}; expected 1 or 2{_has(record)}")
    turns = _turns(_field(record, "conversations", list))
    outputs = [_field(_field(record, name, dict), "value", str) for name in ("output_1", "output_2")]
    images = [record["image"]] if record.get("image") is not None else []
    better, worse = outputs if preference == 1 else reversed(outputs)
    row_id = str(record.get("id", default_id))
    return [Pair(row_id, "llava-rlhf", images, _without_answer(turns), _assistant(better), _assistant(worse))]


def povid(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """POVID (arXiv:2402.11411): two conversations that differ in their last turn.

    Raises:
        ValueError: If they differ before it: such a pair has no common prompt.
    """
    chosen, rejected = (_turns(_field(record, name, list)) for name in ("conversations", "rejected_conversations"))
    prompt = _without_answer(chosen)
    if prompt != _without_answer(rejected):
        raise UserError("conversations and rejected_conversations differ before the last turn: there is no common prompt")
    images = [record["image"]] if record.get("image") is not None else []
    return [Pair(str(record.get("id", default_id)), "povid", images, prompt, chosen[-1:], rejected[-1:])]


def trl(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """TRL's own columns: the texts stay exactly as they are."""
    missing = [name for name in ("prompt", "chosen", "rejected") if record.get(name) is None]
    if missing:
        raise UserError(f"no field {', '.join(missing)}{_has(record)}")
    images = record["images"] if record.get("images") is not None else record.get("image")
    images = [] if images is None else images if isinstance(images, list) else [images]
    source = str(record.get("source") or "trl")
    row_id = str(record["id"]) if record.get("id") is not None else default_id
    return [Pair(row_id, source, images, record["prompt"], record["chosen"], record["rejected"])]


SETS: dict[str, Callable[[Mapping[str, Any], str], list[Pair]]] = {
    "bpo": bpo,
    "rlhf-v": rlhf_v,
    "rlaif-v": rlaif_v,
    "vlfeedback": vlfeedback,
    "llava-rlhf": llava_rlhf,
    "povid": povid,
    "spa-vl": spa_vl,
    "trl": trl,
}


def _plain_pair(record: Mapping[str, Any], default_id: str, *, set_name: str, id_field: str, part_field: str) -> Pair:
    """A pair whose parts have a field each."""
    question, chosen, rejected = (_field(record, name, str) for name in ("question", "chosen", "rejected"))
    row_id = record.get(id_field)
    return Pair(
        id=default_id if row_id is None else str(row_id),
        source=_join(set_name, str(record.get(part_field) or "")),
        images=[record["image"]] if record.get("image") is not None else [],
        prompt=_user(question),
        chosen=_assistant(chosen),
        rejected=_assistant(rejected),
    )


def _as_rows(completions: Any) -> Any:
    """A list of dicts, which older versions of ``datasets`` store as a dict of lists."""
    if not isinstance(completions, dict):
        return completions
    lengths = {name: len(values) if isinstance(values, list) else None for name, values in completions.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise UserError(f"completions is a dict of columns of lengths {lengths}; expected lists of one length")
    return [dict(zip(completions, values, strict=True)) for values in zip(*completions.values(), strict=True)]


def _mean_rating(completion: Mapping[str, Any]) -> float | None:
    annotations = _field(completion, "annotations", dict) if completion.get("annotations") else {}
    notes = [_field(annotations, aspect, dict) if annotations.get(aspect) else {} for aspect in VLFEEDBACK_ASPECTS]
    try:
        mean = sum(float(str(note.get("Rating"))) for note in notes) / len(notes)
    except ValueError:
        # "N/A": the annotator gave none.
        return None
    return mean if math.isfinite(mean) else None


def _turns(conversation: list[Any]) -> Messages:
    """LLaVA's turns as messages. Some files nest the conversation in one more list."""
    if len(conversation) == 1 and isinstance(conversation[0], list):
        conversation = conversation[0]
    turns = []
    for turn in _objects({"conversation": conversation}, "conversation"):
        role = turn.get("from")
        if role not in ROLES:
            raise UserError(f"a turn is from {role!r}; expected one of {', '.join(ROLES)}")
        turns.append({"role": ROLES[role], "content": without_placeholder(_field(turn, "value", str))})
    return turns


def _without_answer(turns: Messages) -> Messages:
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise UserError("a conversation must hold a user turn and end with an assistant turn")
    return turns[:-1]


def without_placeholder(text: str) -> str:
    """Drop LLaVA's image placeholder; where the image goes is the chat template's business."""
    for form in ("<image>\n", "\n<image>", "<image>"):
        text = text.replace(form, "")
    return text


def _user(text: str) -> Messages:
    return [{"role": "user", "content": without_placeholder(text)}]


def _assistant(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


def _field(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    value = record.get(name)
    if value is None:
        raise UserError(f"no field {name}{_has(record)}")
    if not isinstance(value, kind):
        raise UserError(f"field {name} is a {type(value).__name__}; expected {_kind_name(kind)}")
    return value


def _kind_name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__


def _objects(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return a field that lists objects."""
    values = _field(record, name, list)
    odd = next((value for value in values if not isinstance(value, dict)), None)
    if odd is not None:
        raise UserError(f"field {name} holds a {type(odd).__name__}; expected objects")
    return values


def _number(record: Mapping[str, Any], name: str) -> float:
    value = float(_field(record, name, (int, float)))
    if not math.isfinite(value):
        raise UserError(f"field {name} is {value}; expected a finite number")
    return value


def _has(record: Mapping[str, Any]) -> str:
    return f"; the record has {', '.join(map(str, record)) or 'no fields'}"


def _join(set_name: str, part: str) -> str:
    return f"{set_name}/{part}" if part else set_name

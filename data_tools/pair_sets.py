"""How each public set of pairs writes them down: one small function a set, from a record of its own files to pairs.

Sets whose responses have numbers stand in ``rated_sets``. The fields that each function reads, and where they were looked up, are
listed in docs/data.md.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from data_tools.fields import (
    Messages,
    assistant,
    field,
    fields_of,
    images_of,
    join_source,
    number,
    objects,
    other_images,
    place,
    turns,
    user,
)
from mmalign.data.rows import CHOSEN_OTHER, IMAGES_OTHER, PAIR_COLUMNS, place_row_images, response_text, split_pair
from mmalign.errors import UserError

SCORE_COLUMNS = ("score_chosen", "score_rejected")
SENTINEL_SIDES = (("y_win", "win", "chosen"), ("y_lose", "lose", "rejected"))
"""Names of the better and of the worse sentence: in the released files, as they were generated, and for LLaMA-Factory."""
TRL_FLAGS = ("ends", "ends_chosen", "ends_rejected")
"""What a row in TRL's form may say of its answers, beside their texts."""


@dataclass(frozen=True)
class Pair:
    """One preference as a set has it; images are bytes, paths or dicts of them, not yet looked at."""

    id: str
    source: str
    images: list[Any]
    prompt: Any
    chosen: Any
    rejected: Any
    scores: tuple[float, float] | None = None
    """Of chosen and rejected."""
    extra: Mapping[str, Any] = dataclass_field(default_factory=dict)
    """Other columns of the row, by name."""
    images_other: list[Any] | None = None
    """As many images as ``images``, which the chosen response does not describe."""

    def columns(self) -> dict[str, Any]:
        """The row but for its images."""
        scores = {} if self.scores is None else dict(zip(SCORE_COLUMNS, self.scores, strict=True))
        texts = {"id": self.id, "prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected, "source": self.source}
        return {**texts, **scores, **self.extra}

    def image_columns(self) -> dict[str, list[Any]]:
        """The row's images, undecoded."""
        return {"images": self.images} if self.images_other is None else {"images": self.images, IMAGES_OTHER: self.images_other}

    def texts(self) -> list[str]:
        """What the responses say."""
        return [response_text(self.chosen, "chosen"), response_text(self.rejected, "rejected")]


def rlhf_v(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """RLHF-V (arXiv:2312.00849): question, chosen and rejected are a JSON text in one field."""
    text = record.get("text")
    if isinstance(text, str):
        try:
            text = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"field text is not JSON: {error}") from error
    if not isinstance(text, dict):
        raise UserError(f"field text is a {type(text).__name__}; expected JSON with question, chosen and rejected{fields_of(record)}")
    return [_plain_pair({**record, **text}, default_id, set_name="rlhf-v", id_field="idx", part_field="origin_dataset")]


def rlaif_v(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """RLAIF-V (arXiv:2405.17220): one pair per row."""
    return [_plain_pair(record, default_id, set_name="rlaif-v", id_field="idx", part_field="origin_dataset")]


def spa_vl(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """SPA-VL (arXiv:2406.12030): one pair per row; its validation split names the kind of harm."""
    return [_plain_pair(record, default_id, set_name="spa-vl", id_field="image_name", part_field="class1")]


def llava_rlhf(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """LLaVA-RLHF (arXiv:2309.14525): two outputs in place of the last turn; ``preference`` says which is better, 1 or 2."""
    preference = record.get("preference")
    if preference not in (1, 2):
        raise UserError(f"preference is {preference!r}; expected 1 or 2{fields_of(record)}")
    images = images_of(record, "image")
    said = place(turns(field(record, "conversations", list)), images)
    outputs = [field(field(record, name, dict), "value", str) for name in ("output_1", "output_2")]
    better, worse = outputs if preference == 1 else reversed(outputs)
    row_id = str(record.get("id", default_id))
    return [Pair(row_id, "llava-rlhf", images, without_answer(said), assistant(better), assistant(worse))]


def povid(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """POVID (arXiv:2402.11411): two conversations that differ in their last turn.

    Raises:
        ValueError: If they differ before it: such a pair has no common prompt.
    """
    images = images_of(record, "image")
    chosen, rejected = (place(turns(field(record, name, list)), images) for name in ("conversations", "rejected_conversations"))
    prompt = without_answer(chosen)
    if prompt != without_answer(rejected):
        raise UserError("conversations and rejected_conversations differ before the last turn: there is no common prompt")
    return [Pair(str(record.get("id", default_id)), "povid", images, prompt, chosen[-1:], rejected[-1:])]


def hsa_dpo(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """HSA-DPO (arXiv:2404.14233): one pair per row; ``severity`` tells how bad the rejected answer's hallucinations are."""
    row_id = str(field(record, "id", (str, int)))
    question, chosen, rejected = (field(record, name, str) for name in ("question", "chosen", "rejected"))
    images = images_of(record, "image") or [f"{row_id}.jpg"]
    return [
        Pair(
            id=row_id,
            source="hsa-dpo",
            images=images,
            prompt=user(question, images),
            chosen=assistant(chosen),
            rejected=assistant(rejected),
            extra={"severity": number(record, "rejected_score")},
        )
    ]


def sentinel(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """SENTINEL (arXiv:2507.12455): two sentences that continue the same answer.

    Read are the released files of one object, image ids with their pairs each (``records`` yields key and items), the lines that its
    generation writes, and its files for LLaMA-Factory.
    """
    if isinstance(record.get("items"), list):
        rows = [{"image_id": record.get("key"), **item} for item in objects(record, "items")]
        return [_continued(row, f"{record.get('key')}/{number}") for number, row in enumerate(rows)]
    return [_continued(record, default_id)]


def mm_rlhf(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """MM-RLHF (arXiv:2502.10391): one pair per row of ``dpo_pairs.jsonl``; ties make none."""
    if record.get("video") is not None:
        raise UserError("the record has a video, which can't be read")
    if record.get("is_tie"):
        return []
    prompt, chosen, rejected = (field(record, name, str) for name in ("prompt", "chosen", "rejected"))
    row_id = str(record["id"]) if record.get("id") is not None else default_id
    extra = {} if record.get("ls_factor") is None else {"ls_factor": number(record, "ls_factor")}
    images = images_of(record, "image")
    return [Pair(row_id, "mm-rlhf", images, user(prompt, images), assistant(chosen), assistant(rejected), extra=extra)]


def trl(record: Mapping[str, Any], default_id: str) -> list[Pair]:
    """A row in any form that training reads: texts in TRL's own columns stay exactly as they are, others are brought to messages."""
    missing = [name for name in PAIR_COLUMNS if record.get(name) is None]
    if missing:
        raise UserError(f"no field {', '.join(missing)}{fields_of(record)}")
    said, *answers = split_pair(record)
    # Its rejected images are read here as the other scene's.
    prompt, images = place_row_images({**record, "rejected_images": None}, said, "prompt")
    kept = [record[name] for name in ("prompt", *PAIR_COLUMNS)] if _is_plain(record) else [prompt, *map(assistant, answers)]
    scored = all(record.get(name) is not None for name in SCORE_COLUMNS)
    extra = {name: record[name] for name in (*TRL_FLAGS, CHOSEN_OTHER) if record.get(name) is not None}
    return [
        Pair(
            id=str(record["id"]) if record.get("id") is not None else default_id,
            source=str(record.get("source") or "trl"),
            images=images,
            prompt=kept[0],
            chosen=kept[1],
            rejected=kept[2],
            scores=(number(record, SCORE_COLUMNS[0]), number(record, SCORE_COLUMNS[1])) if scored else None,
            extra=extra,
            images_other=other_images(record, images),
        )
    ]


def _is_plain(record: Mapping[str, Any]) -> bool:
    """Whether a row's prompt and answers are texts or TRL's messages, with no image inside, and say all that there is to say."""
    texts = [record.get(name) for name in ("prompt", *PAIR_COLUMNS)]
    messages = [message for text in texts if isinstance(text, list) for message in text]
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    return (
        "system" not in record
        and all(isinstance(text, (str, list)) for text in texts)
        and all(_has_only(message, "role", "content") for message in messages)
        and all(_has_only(part, "type", "text") for part in parts)
    )


def _has_only(held: Mapping[str, Any], *names: str) -> bool:
    return all(value is None or key in names for key, value in held.items())


PAIR_SETS: dict[str, Callable[[Mapping[str, Any], str], list[Pair]]] = {
    "rlhf-v": rlhf_v,
    "rlaif-v": rlaif_v,
    "llava-rlhf": llava_rlhf,
    "povid": povid,
    "spa-vl": spa_vl,
    "hsa-dpo": hsa_dpo,
    "sentinel": sentinel,
    "mm-rlhf": mm_rlhf,
    "trl": trl,
}


def _plain_pair(record: Mapping[str, Any], default_id: str, *, set_name: str, id_field: str, part_field: str) -> Pair:
    """A pair whose parts have a field each."""
    question, chosen, rejected = (field(record, name, str) for name in ("question", "chosen", "rejected"))
    row_id, images = record.get(id_field), images_of(record, "image")
    return Pair(
        id=default_id if row_id is None else str(row_id),
        source=join_source(set_name, str(record.get(part_field) or "")),
        images=images,
        prompt=user(question, images),
        chosen=assistant(chosen),
        rejected=assistant(rejected),
    )


def _continued(record: Mapping[str, Any], row_id: str) -> Pair:
    """A pair of sentences behind the sentences that come before both, which become the assistant's turn that they continue."""
    context = (record.get("context") or "").rstrip()
    question = field(record, "question" if record.get("question") is not None else "instruction", str)
    sides = [next((name for name in names if record.get(name) is not None), names[0]) for names in SENTINEL_SIDES]
    # As in its training code, a space parts the context from what continues it.
    chosen, rejected = (f" {text.lstrip()}" if context else text for text in (field(record, name, str) for name in sides))
    images = images_of(record, "image", "images", "image_path") or [f"{field(record, 'image_id', (str, int))}.jpg"]
    return Pair(
        id=row_id,
        source="sentinel",
        images=images,
        prompt=user(question, images) + (assistant(context) if context else []),
        chosen=assistant(chosen),
        rejected=assistant(rejected),
        extra={"ends": False},
    )


def without_answer(said: Messages) -> Messages:
    """The turns before the last, which must be an assistant's."""
    if len(said) < 2 or said[-1]["role"] != "assistant":
        raise UserError("a conversation must hold a user turn and end with an assistant turn")
    return said[:-1]

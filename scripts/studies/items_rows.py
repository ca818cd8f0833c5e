"""Enumerated answers of the embedded world with an object that is not there among them, and how a model ranks their items."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset, Image, List

from mmalign.data.encode import encode_items
from mmalign.data.rows import read_items
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.files import whole
from mmalign.models.load import best_device, load_mllm
from mmalign.options.world import WorldOptions
from mmalign.worlds.rows import SceneMaker
from mmalign.worlds.scenes import Scene, imagined_item, likely_absent, with_item
from mmalign.worlds.text import Speaker

PROMPT = "Name the objects in the image."
ENUMERATED, TRUE = "response", "true"
Row = dict[str, Any]


def list_rows(seed: int, number: int) -> list[Row]:
    """Draw scenes that lack an object which usually comes with one of theirs, and enumerate each in random order with that object.

    ``items`` and ``relevance`` (1 there, 0 absent) are of ``response``; ``true`` enumerates what is there alone, in the same order.
    """
    maker, speaker = SceneMaker(WorldOptions(out=Path(), seed=seed)), Speaker(SceneMaker.names)
    rows: list[Row] = []
    index = 0
    while len(rows) < number:
        scene, rng = maker.scene("captions", index)
        image = maker.image(scene, rng)
        likely = likely_absent(scene)
        if likely and len(scene.items) > 1:
            absent = imagined_item(rng, scene, likely[int(rng.integers(len(likely)))])
            both = with_item(scene, absent).items
            listed = [both[i] for i in rng.permutation(len(both))]
            text = speaker.short(Scene(tuple(listed)))
            rows.append({
                "id": f"{seed}-{index}",
                "images": [{"bytes": image, "path": None}],
                "prompt": PROMPT,
                ENUMERATED: text,
                TRUE: speaker.short(Scene(tuple(item for item in listed if item is not absent))),
                "items": find_spans(text, [speaker.phrase(item) for item in listed]),
                "relevance": [int(item is not absent) for item in listed],
            })  # fmt: skip
        index += 1
    return rows


def find_spans(text: str, phrases: Sequence[str]) -> list[list[int]]:
    """Find phrases in a text, one behind the other: [start, end) in characters."""
    spans, end = [], 0
    for phrase in phrases:
        start = text.index(phrase, end)
        end = start + len(phrase)
        spans.append([start, end])
    return spans


def as_pair(row: Row) -> Row:
    """The whole answers as a pair: without the absent object, and with it."""
    return _texts(row, chosen=row[TRUE], rejected=row[ENUMERATED])


def as_chat(row: Row) -> Row:
    """The true answer as a chat."""
    asked, said = ({"role": role, "content": text} for role, text in (("user", row["prompt"]), ("assistant", row[TRUE])))
    return {"id": row["id"], "images": row["images"], "messages": [asked, said]}


def as_items(row: Row) -> Row:
    """The answer with its items."""
    return {name: value for name, value in row.items() if name != TRUE}


def _texts(row: Row, **sides: str) -> Row:
    held = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
    return {"id": row["id"], "images": row["images"], "prompt": [{"role": "user", "content": row["prompt"]}], **held}


FORMS: Mapping[str, Callable[[Row], Row]] = {"items": as_items, "pairs": as_pair, "chats": as_chat}
"""What the same rows are trained on as."""


def write_forms(folder: Path, rows: Sequence[Row]) -> None:
    """Write the rows in each form, where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, form in FORMS.items():
        if not (folder / f"{name}.parquet").is_file():
            held = Dataset.from_list([form(row) for row in rows]).cast_column("images", List(Image(decode=False)))
            with whole(folder / f"{name}.parquet") as partial:
                held.cast_column("images", List(Image())).to_parquet(partial)


@torch.no_grad()
def rank_items(model: Path, rows: Sequence[Row], *, batch_size: int = 50) -> dict[str, float]:
    """Measure how a model ranks the items of held-out answers by the mean log-probability of their tokens; see ``ranking``."""
    loaded, processor = load_mllm(str(model))
    loaded = loaded.to(best_device()).eval()
    encoded = [encode_items(processor, read_items(row, index=index)) for index, row in enumerate(rows)]
    means: list[list[float]] = []
    for start in range(0, len(encoded), batch_size):
        part = encoded[start : start + batch_size]
        batch = send_to_device(collate_prompts(part, pad_token_id=processor.tokenizer.pad_token_id), next(loaded.parameters()).device)
        logps = compute_response_logps(loaded, batch)
        items, responses = batch["layout"]["item"], logps.scored.response
        for number, row in enumerate(rows[start : start + batch_size]):
            own = responses == number
            means.append([float(logps.token_logps[own & (items == item)].mean()) for item in range(len(row["items"]))])
    return ranking(means, [row["relevance"] for row in rows])


def ranking(means: Sequence[Sequence[float]], relevance: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return, in percent, the mean NDCG, on what share of the answers the absent item is last, and what share of the others is above it."""
    ndcg, last, above = [], [], []
    for own, grades in zip(means, relevance, strict=True):
        order = np.argsort(-np.asarray(own), kind="stable")
        discounts = 1 / np.log2(2 + np.arange(len(own)))
        ndcg.append(float(np.asarray(grades)[order] @ discounts / (np.sort(grades)[::-1] @ discounts)))
        absent = grades.index(0)
        last.append(order[-1] == absent)
        above.append(np.mean([value > own[absent] for item, value in enumerate(own) if item != absent]))
    return {"NDCG": 100 * float(np.mean(ndcg)), "absent last": 100 * float(np.mean(last)), "above": 100 * float(np.mean(above))}

"""Scored answers, one per line: every metric is a formula over their sums, and a report shows from them what went wrong.

``<benchmark>_items.jsonl`` stands beside ``<benchmark>.json``. A line is an ``Item``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.metrics import Sums
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Item:
    """One answer and what it adds to the metrics.

    Attributes:
        id: Of the question.
        image: Name of the image; intervals resample images, since answers about one image go wrong together. None where a question has
            no image: it is then resampled on its own.
        question: What the model was asked.
        response: What it said.
        label: What would have been right, in words.
        correct: Whether the response is right; None where the benchmark doesn't say so of a single answer.
        group: The split or category that metrics are also given for; empty where there is none.
        values: Value -> what this answer adds to its sum. The benchmark's formulas say which sums a metric is made of.
        cluster: What is resampled as one for metrics that join answers about several images; empty where no metric does.
        wrong: Where in the response an error stands, as (start, end) in characters, end excluded.
    """

    id: str
    image: str | None
    question: str
    response: str
    label: str
    correct: bool | None
    group: str = ""
    values: Mapping[str, float]
    cluster: str = ""
    wrong: tuple[tuple[int, int], ...] = ()


def make_item(question: Question, response: str, **fields: Any) -> Item:
    """Return the item of an answer to a question; ``fields`` are the others of ``Item``."""
    return Item(id=question.id, image=question.image, question=question.prompt, response=response, **fields)


def add_up(items: Sequence[Item], by: Callable[[Item], tuple[str, str]] = lambda item: ("", "")) -> Sums:
    """Add up what answers add.

    Args:
        items: The answers.
        by: What each belongs to; there is a row of sums for each, in sorted order. All are one if not given.
    """
    added: dict[tuple[tuple[str, str], str], dict[str, float]] = {}
    for item in items:
        sums = added.setdefault((by(item), item.group), {})
        for name, value in item.values.items():
            sums[name] = sums.get(name, 0.0) + value
    rows = {unit: row for row, unit in enumerate(sorted({unit for unit, _ in added}))}
    names = dict.fromkeys((group, name) for (_, group), sums in added.items() for name in sums)
    columns = {name: column for column, name in enumerate(names)}
    totals = np.zeros((len(rows), len(columns)))
    for (unit, group), sums in added.items():
        for name, value in sums.items():
            totals[rows[unit], columns[group, name]] = value
    return Sums(columns, totals)


def items_path(folder: Path, benchmark: str) -> Path:
    """Where a benchmark's items lie in a folder of results."""
    return folder / f"{benchmark}_items.jsonl"


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Save items as JSON lines; the file is there whole or not at all."""
    write_whole(path, "".join(json.dumps(asdict(item)) + "\n" for item in items))


def read_items(path: Path) -> list[Item]:
    """Read what ``write_items`` saved.

    Raises:
        ValueError: If a row has other fields.
    """
    items = []
    for number, row in enumerate(read_jsonl(path), start=1):
        row["wrong"] = tuple((start, end) for start, end in row.get("wrong", ()))
        try:
            items.append(Item(**row))
        except TypeError as error:
            # A field too many or too few.
            raise UserError(f"{path}, row {number} is no scored answer ({error}); evaluate again") from error
    return items

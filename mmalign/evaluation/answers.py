"""Saved answers: one JSON object a line, keyed by id."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Question(NamedTuple):
    """One question about one image."""

    id: str
    image: str
    prompt: str


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines.

    Raises:
        ValueError: If the file is missing, or a line is no JSON object; the message holds the line's number.
    """
    if not path.is_file():
        raise ValueError(f"file not found: {path}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is a {type(row).__name__}; expected a JSON object")
        rows.append(row)
    return rows


def read_answers(path: Path) -> dict[str, str]:
    """Read answers by id.

    Raises:
        ValueError: If a row lacks ``id`` or ``response``, or an id stands twice.
    """
    answers: dict[str, str] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        if "id" not in row or not isinstance(row.get("response"), str):
            raise ValueError(f"{path}, row {number} has keys {', '.join(row)}; expected id and response (text)")
        if str(row["id"]) in answers:
            raise ValueError(f"{path} answers {row['id']!r} twice; keep one line of them")
        answers[str(row["id"])] = row["response"]
    return answers


def check_ids(ids: Iterable[str], answers: Mapping[str, str], *, allow_partial: bool) -> None:
    """Check that the answers are those of the questions.

    Raises:
        ValueError: If an answer belongs to no question, or a question has none and ``allow_partial`` is off.
    """
    wanted = set(ids)
    foreign, missing = sorted(answers.keys() - wanted), sorted(wanted - answers.keys())
    if foreign:
        raise ValueError(f"{len(foreign)} answers belong to no question: {', '.join(foreign[:10])}; are they of other data?")
    if missing and not allow_partial:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} questions have no answer: {', '.join(missing[:10])}; "
            "generate them, or pass --allow-partial to score the rest"
        )
    if not answers:
        raise ValueError("there are no answers to score")

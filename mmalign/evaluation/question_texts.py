"""Which question does a row answer? Its id is held to the question that the row repeats; files that count otherwise are matched by it."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.errors import UserError
from mmalign.evaluation.image_ids import is_coco_file, read_coco_id

# Fields that a row may repeat its question in.
QUESTION_FIELDS = ("question", "prompt", "query")
IMAGE_FIELDS = ("image", "image_path", "file_name", "image_source")


def name_rows(
    rows: Sequence[Any],
    ids: Sequence[str | None],
    *,
    normalise: Callable[[str], str],
    order: Sequence[str],
    texts: Mapping[str, str],
    parts: Sequence[Sequence[str]],
    path: Path,
) -> list[str | None]:
    """Say which question each row of answers belongs to: by its id, by its place, or by the question that it repeats.

    Args:
        rows: Of a file of answers.
        ids: The rows' own.
        normalise: Turns the ids that people write into the benchmark's.
        order: Ids of the questions in their order.
        texts: What the questions ask, by id.
        parts: Ids of the questions by file, in their order.
        path: The file, for errors.

    Returns:
        Ids of questions; None for a row that answers a question of another file.

    Raises:
        ValueError: If a row answers another question than the one of its id, some rows have an id and others none, or those without are
            not the questions, one by one.
    """
    asked = [repeated_question(row) for row in rows]
    named = [None if identifier is None else normalise(str(identifier)) for identifier in ids]
    without_ids = bool(order) and all(identifier is None for identifier in ids)
    if without_ids and len(ids) == len(order):
        named = list(order)
    counted = without_ids and len(ids) != len(order)
    mismatch = None if counted else find_mismatch(named, asked, texts)
    if counted or mismatch is not None or any(i not in texts for i in named):
        aligned = align_parts(asked, ids, parts or (order,), texts)
        if aligned is not None and not aligned.missing:
            return aligned.ids
        if aligned is not None and (mismatch is not None or not any(i in texts for i in named)):
            part = aligned.missing[0]
            raise UserError(
                f"{path} repeats other parts of the data in their order, but not the {len(part)} questions from {part[0]} on "
                f"({texts[part[0]]!r}); give --data the very files that the model was asked from, or the parts that are answered"
            )
    if counted:
        raise UserError(
            f"{path} has {len(ids)} answers without ids for {len(order)} questions; without ids there must be one for each, in order"
        )
    if mismatch is not None:
        identifier = named[mismatch.row]
        question = f"{path}, row {mismatch.row + 1} answers {mismatch.text!r}, but question {identifier} is {texts[str(identifier)]!r}"
        advice = "put the rows in the questions' order, or give each its id" if without_ids else "these are answers to another set or split"
        raise UserError(f"{question}; {advice}, or, if the model was asked in other words, leave the row's question out")
    if None in named:
        number = named.index(None)
        raise UserError(f"{path}, row {number + 1} has keys {', '.join(rows[number])}; expected id and response (text)")
    return named


def repeated_question(row: Any) -> str | None:
    """The question that a row of answers repeats."""
    values = [row.get(name) for name in QUESTION_FIELDS] if isinstance(row, Mapping) else []
    return next((value for value in values if isinstance(value, str) and value.strip()), None)


def check_images(rows: Sequence[Any], named: Sequence[str | None], images: Mapping[str, str | None], *, path: Path) -> None:
    """Hold rows that name a COCO image to the one that their question is about; other names may have been given anew.

    Raises:
        ValueError: With the first row whose image is another one.
    """
    for number, (row, identifier) in enumerate(zip(rows, named, strict=True), start=1):
        shown = images.get(str(identifier))
        given = next((row[name] for name in IMAGE_FIELDS if is_coco_file(row.get(name))), None) if isinstance(row, Mapping) else None
        if given is not None and is_coco_file(shown) and read_coco_id(given) != read_coco_id(str(shown)):
            raise UserError(
                f"{path}, row {number} is about image {given}, but question {identifier} is about {shown}; these are answers to "
                "another set, or stand in another order"
            )


class Asked(NamedTuple):
    """What a row repeats as its question, and the row's place."""

    row: int
    text: str


def find_mismatch(ids: Sequence[str | None], asked: Sequence[str | None], texts: Mapping[str, str]) -> Asked | None:
    """Return the first row that repeats another question than the one of its id."""
    for row, (identifier, text) in enumerate(zip(ids, asked, strict=True)):
        asked_for = None if identifier is None else texts.get(identifier)
        if text is not None and asked_for is not None and core_of(asked_for) not in normalise(text):
            return Asked(row, text)
    return None


class Alignment(NamedTuple):
    """Which question each row answers, by the questions that they repeat.

    Attributes:
        ids: The question of each row; None for rows of other sets.
        missing: Parts of the questions whose run is not there, or there twice.
    """

    ids: list[str | None]
    missing: list[Sequence[str]]


def align_parts(
    asked: Sequence[str | None], ids: Sequence[str | None], parts: Sequence[Sequence[str]], texts: Mapping[str, str]
) -> Alignment | None:
    """Find, for each part of the questions, the run of rows that repeats it question by question.

    LLaVA's one answer file for POPE counts its ids over the splits, and "Is there a dog in the image?" is asked of many images: a whole
    split in its order is the only thing that tells which row is which.

    Args:
        asked: What each row repeats.
        ids: The rows' own ids; rows with numbers are taken in the order of these.
        parts: Ids of the questions, part by part.
        texts: What they ask.

    Returns:
        The questions of the rows; None where rows or questions have no texts, or no part's run is there.
    """
    if not parts or any(text is None for text in asked) or any(i not in texts for part in parts for i in part):
        return None
    order = _order(ids)
    lines = [normalise(str(asked[row])) for row in order]
    found = Alignment([None] * len(asked), [])
    for part in parts:
        start = _only_run(lines, [core_of(texts[i]) for i in part])
        rows = [] if start is None else order[start : start + len(part)]
        if not rows or any(found.ids[row] is not None for row in rows):
            found.missing.append(part)
            continue
        for row, identifier in zip(rows, part, strict=True):
            found.ids[row] = identifier
    return None if len(found.missing) == len(parts) else found


def _order(ids: Sequence[str | None]) -> list[int]:
    """Rows by their numbers where each has its own, else as they stand."""
    numbers = [int(i) for i in ids if i is not None and re.fullmatch(r"\d{1,12}", i)]
    whole = len(numbers) == len(ids) == len(set(numbers))
    return sorted(range(len(ids)), key=lambda row: numbers[row]) if whole else list(range(len(ids)))


def _only_run(lines: Sequence[str], cores: Sequence[str]) -> int | None:
    """Where the questions stand one after the other; None where they do nowhere, or more than once."""
    if not cores:
        return None
    starts = range(len(lines) - len(cores) + 1)
    runs = [start for start in starts if all(core in lines[start + i] for i, core in enumerate(cores))]
    return runs[0] if len(runs) == 1 else None


def normalise(text: str) -> str:
    """A text in lower case with single spaces."""
    return " ".join(text.lower().split())


def core_of(question: str) -> str:
    """A question without the request behind it, such as MME's "Please answer yes or no.": models are asked with others."""
    text = normalise(question)
    return text[: text.rfind("?") + 1] if "?" in text else text

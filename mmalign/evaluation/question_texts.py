"""Which question does a row answer? Its id is held to the question that the row repeats; files that count otherwise are matched by it."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


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

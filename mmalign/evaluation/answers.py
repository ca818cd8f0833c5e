"""Questions and saved answers: ours (JSONL: id, response) and each benchmark's own files, matched by id."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)
SHOWN, LONGEST_ID = 20, 80  # Ids in a message, letters of an id.


class Question(NamedTuple):
    """One question about one image, or about none (HallusionBench has some)."""

    id: str
    image: str | None
    prompt: str


class Answer(NamedTuple):
    """One response; an id may still stand twice."""

    id: str
    response: str


def check_texts(items: Iterable[Any], *, what: str | Path) -> None:
    """Check that what a benchmark's files name as texts (ids, images, questions) are texts.

    Args:
        items: Dataclass instances with an ``id``; their fields of type ``str``, or ``str | None``, are looked at.
        what: Where they come from.

    Raises:
        ValueError: With the first that is none.
    """
    for item in items:
        for one in fields(item):
            value = getattr(item, one.name)
            if one.type in (str, str | None) and not (isinstance(value, str) or (value is None and one.type is not str)):
                raise ValueError(f"{what}: {one.name} of question {item.id!r} is {repr(value)[:40]}; expected text")


def read_text(path: Path) -> str:
    """Read UTF-8, with or without the mark that some editors put before it.

    Raises:
        ValueError: If the file is missing or of another encoding.
    """
    if not path.is_file():
        raise ValueError(f"file not found: {path}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}; save it as UTF-8") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines.

    Raises:
        ValueError: If the file is missing or not UTF-8, or a line is no JSON object; the message holds the line's number.
    """
    rows = []
    # Not splitlines: an answer may hold characters that it takes for line ends, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}; expected one JSON object a line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is {line.strip()[:40]}; expected one JSON object a line")
        rows.append(row)
    return rows


def read_records(path: Path) -> list[Any]:
    """Read a JSON array or JSON lines; the benchmarks' ``.json`` files are either.

    Raises:
        ValueError: If the file is missing or is neither.
    """
    text = read_text(path)
    if not text[:64].lstrip().startswith("["):
        return read_jsonl(path)
    try:
        records: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    return records


@dataclass(frozen=True)
class AnswerFormat:
    """How a benchmark's own answer files are read.

    Attributes:
        text: Fields that may hold the response, beside ours (``response``); the first one that a row has is taken.
        row_id: The question that a row answers, where it has no ``id``; None where it doesn't say, and rows are in order.
        normalise: Turns the ids that people write into the benchmark's.
        read_rows: Reads the rows of a file, or of a folder.
    """

    text: tuple[str, ...] = ()
    row_id: Callable[[Mapping[str, Any]], str | None] = field(default=lambda row: None)
    normalise: Callable[[str], str] = field(default=lambda identifier: identifier)
    read_rows: Callable[[Path], list[Any]] = read_records


OURS = AnswerFormat()


def read_answers(
    path: Path, form: AnswerFormat = OURS, *, order: Sequence[str] = (), texts: Mapping[str, str] | None = None
) -> list[Answer]:
    """Read answers: of rows with ids by id, of rows without any in the questions' order.

    Args:
        path: File or folder.
        form: How the benchmark's own rows look.
        order: Ids of the questions in their order.
        texts: What the questions ask, by id: rows without ids that repeat their question must repeat the one at their place.

    Raises:
        ValueError: If a row lacks its response, some rows have an id and others none, or those without are not the questions, one by one.
    """
    rows = form.read_rows(path)
    if not rows:
        raise ValueError(f"there are no answers in {path}")
    responses = [_response(row, form, where=f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
    ids = [_row_id(row, form) for row in rows]
    if all(identifier is None for identifier in ids) and order:
        if len(rows) != len(order):
            raise ValueError(
                f"{path} has {len(rows)} answers without ids for {len(order)} questions; without ids there must be one for each, in order"
            )
        _check_order(rows, order, texts or {}, path=path)
        return [Answer(identifier, response) for identifier, response in zip(order, responses, strict=True)]
    for number, (row, identifier) in enumerate(zip(rows, ids, strict=True), start=1):
        if identifier is None:
            raise ValueError(f"{path}, row {number} has keys {', '.join(row)}; expected id and response (text)")
    return [Answer(form.normalise(str(i)), response) for i, response in zip(ids, responses, strict=True)]


def read_decoding(path: Path, form: AnswerFormat = OURS) -> Mapping[str, Any] | None:
    """Return how answers were generated, where every row says the same in its field ``gen``."""
    rows = form.read_rows(path)
    settings = [row.get("gen") if isinstance(row, Mapping) else None for row in rows]
    same = bool(settings) and all(setting == settings[0] for setting in settings)
    return settings[0] if same and isinstance(settings[0], Mapping) else None


def _check_order(rows: Sequence[Any], order: Sequence[str], texts: Mapping[str, str], *, path: Path) -> None:
    """Refuse rows in another order than the questions: an answer would count for a question that it does not answer."""
    for number, (row, identifier) in enumerate(zip(rows, order, strict=True), start=1):
        asked = row.get("question", row.get("prompt")) if isinstance(row, Mapping) else None
        # The model may have been asked with something before or behind the question.
        if isinstance(asked, str) and texts.get(identifier, "") not in asked:
            raise ValueError(
                f"{path}, row {number} answers {asked!r}, but question {identifier} is {texts[identifier]!r}; "
                "put the rows in the questions' order, or give each its id"
            )


def _row_id(row: Any, form: AnswerFormat) -> str | None:
    if not isinstance(row, Mapping):
        return None
    return str(row["id"]) if "id" in row else form.row_id(row)


def _response(row: Any, form: AnswerFormat, *, where: str) -> str:
    if isinstance(row, str):
        return row
    names = ("response", *form.text)
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is {json.dumps(row)[:40]}; expected an object with id and response")
    name = next((name for name in names if name in row), None)
    if name is None:
        raise ValueError(f"{where} has keys {', '.join(row)}; expected id and {' or '.join(names)}")
    if not isinstance(row[name], str):
        raise ValueError(f'{where}: {name} is {json.dumps(row[name])[:40]}; expected text, and "" where nothing was said')
    return str(row[name])


def match_answers(
    answers: Iterable[Answer], *, required: Sequence[str], known: Container[str] | None = None, allow_partial: bool = False
) -> dict[str, str]:
    """Return the responses by id, in the questions' order.

    Args:
        answers: As read.
        required: Questions that must have an answer.
        known: Questions that may have one; ``required`` if not given. What is known but not required is left out without complaint,
            unless nothing is required.
        allow_partial: Score what is there: foreign answers are left out, the first of doubled ones counts, and a warning says so.

    Raises:
        ValueError: With a list of the missing, doubled and foreign ids, unless ``allow_partial``; and if nothing is left.
    """
    answers = list(answers)
    counts = Counter(answer.id for answer in answers)
    wanted = dict.fromkeys(required)
    known = wanted if known is None else known
    problems = [
        _listed("questions have no answer", [i for i in wanted if i not in counts]),
        _listed("ids are answered more than once", [i for i, count in counts.items() if count > 1]),
        _listed("answers belong to no question", [i for i in counts if i not in known]),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if counts and not any(i in known for i in counts):
        mine, theirs = next(iter(wanted), None), next(iter(counts))
        expected = f", expected ids such as {_shortened(mine)}" if mine is not None else ""
        raise ValueError(f"none of {len(counts)} answers belongs to this benchmark: their ids are such as {_shortened(theirs)}{expected}")
    if found and not allow_partial:
        raise ValueError(f"{found}. Answer each question once, or pass --allow-partial to score what is there")
    if found:
        logger.warning("scored in part: %s", found)
    responses: dict[str, str] = {}
    for answer in answers:
        if answer.id in (wanted or known):
            responses.setdefault(answer.id, answer.response)
    if not responses:
        raise ValueError("there are no answers to score")
    return {i: responses[i] for i in wanted or responses if i in responses}


def _listed(what: str, ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{len(ids)} {what}: {', '.join(map(_shortened, ids[:SHOWN]))}{more}" if ids else ""


def _shortened(name: str) -> str:
    """An id as a message can hold it: not a page long, and without halves of surrogate pairs, which can't be printed."""
    return (name if len(name) <= LONGEST_ID else f"{name[:LONGEST_ID]}...").encode(errors="backslashreplace").decode()

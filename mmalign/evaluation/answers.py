"""Questions and saved answers: ours (JSONL: id, response) and each benchmark's own files, matched by id and held to their question."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.errors import UserError
from mmalign.evaluation.question_texts import QUESTION_FIELDS, check_images, name_rows, repeated_question
from mmalign.evaluation.reasoning import strip_reasoning
from mmalign.evaluation.rows import REASONING_FIELDS, flatten_completion, read_records, reads_limit
from mmalign.evaluation.saved_rows import MODEL_FIELDS, find_response_field, flatten_sample, warn_of_order, warn_of_unread

logger = logging.getLogger(__name__)
SHOWN, LONGEST_ID = 20, 80  # Ids in a message, letters of an id.
# Where a word is asked for, LLaVA's script (model_vqa_loader.py) and lmms-eval's POPE generate up to so many tokens.
SHORT_ANSWER = 128
# Fields that tell a row from a table of id -> response.
_ROW_FIELDS = {"id", "question_id", "image_id", "image", "response", "text", "answer", "choices", *MODEL_FIELDS, *QUESTION_FIELDS}


class Question(NamedTuple):
    """One question about one image, or about none (HallusionBench has some).

    Attributes:
        max_new_tokens: Longest answer, unless the user says otherwise.
    """

    id: str
    image: str | None
    prompt: str
    max_new_tokens: int = SHORT_ANSWER


class QuestionsById(dict[str, Question]):
    """Questions by id; one that is not there has no image and no words, as where only annotations were given."""

    def __init__(self, questions: Iterable[Question]) -> None:
        super().__init__({question.id: question for question in questions})

    def __missing__(self, identifier: str) -> Question:
        return Question(identifier, None, "")


class Answer(NamedTuple):
    """One response; an id may still stand twice.

    Attributes:
        response: Without the reasoning before it; empty where it ended inside.
        reasoned: Whether there was any.
        at_limit: Whether it ended at the longest length allowed; None where the file does not say.
        decoding: How it was generated (``gen``); None where the file does not say.
    """

    id: str
    response: str
    reasoned: bool = False
    at_limit: bool | None = None
    decoding: Mapping[str, Any] | None = None


def check_texts(records: Iterable[Any], *, what: str | Path) -> None:
    """Check that what a benchmark's files name as texts (ids, images, questions) are texts.

    Args:
        records: Instances of a class with an ``id``; their fields of type ``str``, or ``str | None``, are looked at.
        what: Where they come from.

    Raises:
        ValueError: With the first that is none.
    """
    for record in records:
        for name, kind in type(record).__annotations__.items():
            value = getattr(record, name)
            if kind in (str, str | None) and not (isinstance(value, str) or (value is None and kind is not str)):
                raise UserError(f"{what}: {name} of question {record.id!r} is {repr(value)[:40]}; expected text")


def read_answer_file(path: Path) -> list[Any]:
    """Read rows; one object of id -> response, samples of lmms-eval, and replies of an endpoint as they were sent, become rows.

    Raises:
        ValueError: As ``read_records``, and if a reply is an error.
    """
    rows = []
    for number, row in enumerate(read_records(path), start=1):
        try:
            rows.append(flatten_sample(flatten_completion(row)))
        except UserError as error:
            raise UserError(f"{path}, row {number} is a reply of an endpoint, and {error}; ask again, or leave the row out") from error
    return spread(rows)


def spread(rows: list[Any]) -> list[Any]:
    """Turn one object of id -> response into rows; others are left as they are."""
    if len(rows) != 1 or not isinstance(rows[0], Mapping) or _ROW_FIELDS & set(rows[0]):
        return rows
    whole = all(isinstance(value, str) for value in rows[0].values())
    return [{"id": key, "response": value} for key, value in rows[0].items()] if whole else rows


@dataclass(frozen=True)
class AnswerFormat:
    """How a benchmark's own answer files are read.

    Attributes:
        text: Fields that may hold the response, beside ours (``response``); the first one that a row has is taken, unless it holds the
            row's own question or label.
        row_id: The question that a row answers, where it has no ``id``; None where it doesn't say, and rows are in order.
        normalise: Turns the ids that people write into the benchmark's.
        read_rows: Reads the rows of a file, or of a folder.
    """

    text: tuple[str, ...] = ()
    row_id: Callable[[Mapping[str, Any]], str | None] = field(default=lambda row: None)
    normalise: Callable[[str], str] = field(default=lambda identifier: identifier)
    read_rows: Callable[[Path], list[Any]] = read_answer_file


OURS = AnswerFormat()


def question_id(row: Mapping[str, Any]) -> str | None:
    """The id of LLaVA's rows, or of VLMEvalKit's."""
    return spell_id(row.get("question_id", row.get("index")))


def spell_id(value: Any) -> str | None:
    """An id as text; tables hold whole numbers as 7.0 where one is missing."""
    return None if value is None else str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_answers(
    path: Path,
    form: AnswerFormat = OURS,
    *,
    order: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
    parts: Sequence[Sequence[str]] = (),
    images: Mapping[str, str | None] | None = None,
) -> list[Answer]:
    """Read answers: of rows with ids by id, of rows without any in the questions' order.

    Args:
        path: File or folder.
        form: How the benchmark's own rows look.
        order: Ids of the questions in their order.
        texts: What the questions ask, by id: rows that repeat their question must repeat this one.
        parts: Ids of the questions by file, in their order, where one file of answers may hold several. Rows whose ids are of another
            count are then known by the questions that they repeat.
        images: Which image each question is about, by id: rows that name a COCO image must name this one.

    Raises:
        ValueError: If a row lacks its response, answers another question than the one of its id, some rows have an id and others none, or
            those without are not the questions, one by one.
    """
    rows = form.read_rows(path)
    if not rows:
        raise UserError(f"there are no answers in {path}")
    answers = _read_responses(rows, form, path)
    ids = [_row_id(row, form) for row in rows]
    named = name_rows(rows, ids, normalise=form.normalise, order=order, texts=texts or {}, parts=parts, path=path)
    check_images(rows, named, images or {}, path=path)
    if all(i is None for i in ids) and all(repeated_question(row) is None for row in rows):
        warn_of_order(rows, ("response", *form.text), path=path)
    if others := named.count(None):
        logger.warning("%s: %d of %d rows answer questions of other files and are left out", path, others, len(rows))
    return [answer._replace(id=i) for i, answer in zip(named, answers, strict=True) if i is not None]


def strip_own(rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Return answers that mmalign gave itself (id, response, ended) without their reasoning."""
    answers = _read_responses(rows, OURS, "the answers")
    return [answer._replace(id=row["id"]) for row, answer in zip(rows, answers, strict=True)]


def _read_responses(rows: Sequence[Any], form: AnswerFormat, path: Path | str) -> list[Answer]:
    """Read what each row says; ids come later."""
    texts = [_response(row, form, where=f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
    warn_of_unread(rows, ("response", *form.text), path=path)
    limits = [reads_limit(row) if isinstance(row, Mapping) else None for row in rows]
    stripped = [strip_reasoning(text) for text in texts]
    # The template opened the reasoning: an answer of the same model that never closes it, and ended at the limit, ended inside.
    headless = any(one.headless for one in stripped)
    answers = []
    for row, one, limit in zip(rows, stripped, limits, strict=True):
        cut = headless and limit is True and not one.reasoned
        fields = row if isinstance(row, Mapping) else {}
        apart = any(isinstance(fields.get(name), str) and fields[name].strip() for name in REASONING_FIELDS)
        decoding = fields["gen"] if isinstance(fields.get("gen"), Mapping) else None
        answers.append(Answer("", "" if cut else one.text, reasoned=one.reasoned or cut or apart, at_limit=limit, decoding=decoding))
    return answers


def shared_decoding(answers: Sequence[Answer]) -> Mapping[str, Any] | None:
    """Return how answers were generated, where all say the same."""
    return answers[0].decoding if all(answer.decoding == answers[0].decoding for answer in answers) else None


class Endings(NamedTuple):
    """How answers ended.

    Attributes:
        reasoned: Answers with reasoning before them, or in marks of their own.
        unanswered: Of these, those that came to no answer.
        at_limit: Answers that ended at the longest length allowed; None where none says.
    """

    reasoned: int
    unanswered: int
    at_limit: int | None


def count_endings(answers: Iterable[Answer]) -> Endings:
    """Count how answers ended."""
    answers = list(answers)
    limits = [answer.at_limit for answer in answers if answer.at_limit is not None]
    unanswered = sum(answer.reasoned and not answer.response.strip() for answer in answers)
    return Endings(sum(answer.reasoned for answer in answers), unanswered, sum(limits) if limits else None)


def _row_id(row: Any, form: AnswerFormat) -> str | None:
    if not isinstance(row, Mapping):
        return None
    return spell_id(row["id"]) if row.get("id") is not None else form.row_id(row)


def _response(row: Any, form: AnswerFormat, *, where: str) -> str:
    if isinstance(row, str):
        return row
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is {json.dumps(row)[:40]}; expected an object with id and response")
    name = find_response_field(row, ("response", *form.text), where=where)
    if row[name] is None and any(isinstance(row.get(field), str) for field in REASONING_FIELDS):
        # A server that sends reasoning apart sends null where the reply ended inside it.
        return ""
    if not isinstance(row[name], str):
        raise UserError(f'{where}: {name} is {json.dumps(row[name])[:40]}; expected text, and "" where nothing was said')
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
        ids = wanted or (known if isinstance(known, Iterable) else ())
        mine, theirs = next(iter(ids), None), next(iter(counts))
        expected = f", expected ids such as {_shortened(mine)}" if mine is not None else ""
        raise UserError(f"none of {len(counts)} answers belongs to this benchmark: their ids are such as {_shortened(theirs)}{expected}")
    if found and not allow_partial:
        raise UserError(f"{found}. Answer each question once, or pass --allow-partial to score what is there")
    if found:
        logger.warning("scored in part: %s", found)
    responses: dict[str, str] = {}
    for answer in answers:
        if answer.id in (wanted or known):
            responses.setdefault(answer.id, answer.response)
    if not responses:
        raise UserError("there are no answers to score")
    return {i: responses[i] for i in wanted or responses if i in responses}


def _listed(what: str, ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{len(ids)} {what}: {', '.join(map(_shortened, ids[:SHOWN]))}{more}" if ids else ""


def _shortened(name: str) -> str:
    """An id as a message can hold it: not a page long, and without halves of surrogate pairs, which can't be printed."""
    return (name if len(name) <= LONGEST_ID else f"{name[:LONGEST_ID]}...").encode(errors="backslashreplace").decode()

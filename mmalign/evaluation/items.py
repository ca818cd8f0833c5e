"""Scored answers, one a line: what a report needs for intervals and for showing what went wrong.

``<benchmark>_items.jsonl`` stands beside ``<benchmark>.json``. A line is an ``Item``.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.hallusionbench import HallusionQuestion
from mmalign.evaluation.pope import PopeQuestion
from mmalign.evaluation.rows import read_jsonl


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
        values: Metric name -> what this answer adds to its numerator and denominator. The metric is the sum of the one over the sum
            of the other. F1 is such a ratio too, see ``binary_values``.
        wrong: Where in the response an error stands, as (start, end) in characters, end excluded.
    """

    id: str
    image: str | None
    question: str
    response: str
    label: str
    correct: bool | None
    group: str = ""
    values: Mapping[str, tuple[float, float]]
    wrong: tuple[tuple[int, int], ...] = ()


def items_path(folder: Path, benchmark: str) -> Path:
    """Where a benchmark's items lie in a folder of results."""
    return folder / f"{benchmark}_items.jsonl"


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Save items as JSON lines; the file is there whole or not at all."""
    ready = path.with_name(path.name + ".ready")
    ready.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items), encoding="utf-8")
    ready.rename(path)


def read_items(path: Path) -> list[Item]:
    """Read what ``write_items`` saved.

    Raises:
        ValueError: If a row has other fields, or a value is no numerator and denominator.
    """
    items = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            values = {str(name): (float(top), float(bottom)) for name, (top, bottom) in row.pop("values").items()}
            wrong = tuple((int(start), int(end)) for start, end in row.pop("wrong", ()))
            item = Item(**row, values=values, wrong=wrong)
            texts = (item.id, item.question, item.response, item.label, item.group, "" if item.image is None else item.image)
            if not all(isinstance(text, str) for text in texts) or item.correct not in (None, False, True):
                raise TypeError("a field is of another type")
            items.append(item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}, row {number} is no scored answer ({error}); evaluate again") from error
    return items


def binary_values(*, label: bool, reply: bool | None) -> dict[str, tuple[float, float]]:
    """What a yes-or-no answer adds, with yes as the positive class; an unknown reply is wrong.

    F1 = 2PR / (P + R) = 2 TP / (said yes + are yes), so that its parts add up over answers as those of the others do.
    """
    said, true_positive = reply is True, label and reply is True
    return {
        "accuracy": (float(label == reply), 1.0),
        "precision": (float(true_positive), float(said)),
        "recall": (float(true_positive), float(label)),
        "f1": (2.0 * true_positive, float(said) + float(label)),
        "yes_ratio": (float(said), 1.0),
    }


def make_pope_items(questions: Sequence[PopeQuestion], answers: Mapping[str, str], *, parse: Callable[[str], bool | None]) -> list[Item]:
    """Return an item for each answered question; the splits are the groups.

    Args:
        questions: All questions.
        answers: Responses by id.
        parse: How a response is read: yes, no, or None where it is neither.
    """
    items = []
    for question in questions:
        if question.id in answers:
            reply = parse(answers[question.id])
            items.append(
                Item(
                    id=question.id,
                    image=question.image,
                    question=question.text,
                    response=answers[question.id],
                    label="yes" if question.is_yes else "no",
                    correct=reply == question.is_yes,
                    group=question.split,
                    values=binary_values(label=question.is_yes, reply=reply),
                )
            )
    return items


def make_chair_items(
    questions: Sequence[Question],
    answers: Mapping[str, str],
    *,
    truths: Mapping[str, Collection[str]],
    find: Callable[[str], Sequence[str]],
    locate: Callable[[str], Sequence[tuple[str, int, int]]] | None = None,
) -> list[Item]:
    """Return an item for each caption; it is right where it names no absent object.

    Args:
        questions: The images.
        answers: Captions by id.
        truths: The objects of each image by id.
        find: Objects that a caption names, repeats kept.
        locate: The same with the places, (object, start, end), where they are known.
    """
    items = []
    for question in questions:
        if question.id in answers:
            caption, truth = answers[question.id], set(truths[question.id])
            named = find(caption)
            absent = [name for name in named if name not in truth]
            items.append(
                Item(
                    id=question.id,
                    image=question.image,
                    question=question.prompt,
                    response=caption,
                    label=", ".join(sorted(truth)) or "nothing",
                    correct=not absent,
                    values={
                        "sentence": (float(bool(absent)), 1.0),
                        "instance": (float(len(absent)), float(len(named))),
                        "recall": (float(len(truth & set(named))), float(len(truth))),
                        "mentions": (float(len(named)), 1.0),
                    },
                    wrong=() if locate is None else tuple((start, end) for name, start, end in locate(caption) if name not in truth),
                )
            )
    return items


def make_hallusion_items(questions: Sequence[HallusionQuestion], answers: Mapping[str, str], *, right: Mapping[str, bool]) -> list[Item]:
    """Return an item for each answered question.

    ``aacc`` is a sum over answers and ``facc`` one over images, since all questions on a figure are about one image: the first of them
    carries its figure. ``qacc`` joins answers about several images, which an interval over images can't resample, and is left out.

    Args:
        questions: All questions.
        answers: Responses by id.
        right: Whether each is right.
    """
    answered = [question for question in questions if question.id in answers]
    whole: dict[str, bool] = {}
    for question in answered:
        if question.figure is not None:
            whole[question.figure] = whole.get(question.figure, True) and right[question.id]
    items = []
    for question in answered:
        values = {"aacc": (100.0 * right[question.id], 1.0)}
        if question.figure in whole:
            values["facc"] = (100.0 * whole.pop(question.figure), 1.0)
        items.append(
            Item(
                id=question.id,
                image=question.image,
                question=question.question,
                response=answers[question.id],
                label=f"{'yes' if question.is_yes else 'no'}: {question.reference}",
                correct=right[question.id],
                values=values,
            )
        )
    return items

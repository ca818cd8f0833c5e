"""Rows of answers that others saved: which field holds what the model said, and the samples of lmms-eval."""

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.evaluation.question_texts import normalise, repeated_question

logger = logging.getLogger(__name__)
# Fields that hold what a model said and nothing else, whoever wrote the file.
MODEL_FIELDS = (
    "prediction",
    "pred",
    "predict",
    "model_response",
    "model_prediction",
    "model_answer",
    "model_output",
    "output",
    "outputs",
    "generated_text",
    "completion",
    "caption",
)
# POPE's own rows answer in "answer", LLaVA's in "text"; others keep the label and the question there.
_EITHER = ("answer", "text")
# Texts of a row that nobody takes for what the model said.
_ABOUT = {
    *("id", "index", "question_id", "image_id", "img_id", "answer_id", "question", "prompt", "query", "hint", "system"),
    *("image", "images", "image_path", "image_source", "image_src", "image_name", "file_name", "filename", "url"),
    *("label", "gt", "gt_answer", "ground_truth", "truth", "target", "category", "l2-category", "subcategory", "split", "type", "kind"),
    *("question_type", "object_name", "source", "dataset", "model", "model_id", "model_name", "finish_reason", "stop_reason"),
    *("reasoning", "reasoning_content"),
}
_SHOWN = 12


def find_response_field(row: Mapping[str, Any], names: Sequence[str], *, where: str) -> str:
    """Return the field of a row that holds what the model said.

    Args:
        row: Of a file of answers.
        names: Fields that may hold it, the first one that is there is taken, unless it is the row's own question or label.
        where: The row's place, for errors.

    Raises:
        ValueError: If none of them is there, or nothing tells which of two it is.
    """
    name = next((name for name in names if name in row), None)
    if name in _EITHER:
        own = _own_field(row, where=where)
        name = next((name for name in names if name in row and name != own), None)
        if name is None:
            raise UserError(f"{where} is a question: its {own} is the benchmark's own; expected what the model said in response")
    if name is None:
        keys = ", ".join(map(str, islice(row, _SHOWN))) + (f" and {len(row) - _SHOWN} more" if len(row) > _SHOWN else "")
        expected = " or ".join(name for name in names if name not in MODEL_FIELDS[1:])
        raise UserError(f"{where} has keys {keys}; expected id and {expected}")
    return name


def warn_of_unread(rows: Sequence[Any], names: Sequence[str], *, path: Path | str) -> None:
    """Say which other texts the first row has where its response is read from a field that others keep the label in."""
    row = rows[0]
    name = next((name for name in names if name in row), None) if isinstance(row, Mapping) else None
    others = [key for key, value in row.items() if isinstance(value, str) and key not in {*names, *_ABOUT}] if name in _EITHER else []
    if others:
        logger.warning(
            "%s: %s is read as what the model said, and %s is not read; call it response if it is", path, name, ", ".join(others)
        )


def warn_of_order(rows: Sequence[Any], names: Sequence[str], *, path: Path) -> None:
    """Say which fields may be ids where rows without any that is read are taken as they stand: those with another value in each row."""
    if len(rows) < 2 or not all(isinstance(row, Mapping) for row in rows):
        return
    others = [key for key, value in rows[0].items() if key not in {*names, *_ABOUT} and isinstance(value, int | str)]
    if unread := [key for key in others if len({str(row.get(key)) for row in rows}) == len(rows)]:
        logger.warning(
            "%s: rows have no id and are taken in the questions' order; %s is not read, call it id if it is one", path, ", ".join(unread)
        )


def _own_field(row: Mapping[str, Any], *, where: str) -> str | None:
    """Which of answer and text holds the row's own label or question; None where neither does.

    POPE's rows have the question as text beside its label, the hub's the label as answer beside image_source or category, LLaVA's the
    response as text beside prompt.
    """
    text, asked = row.get("text"), repeated_question(row)
    if not isinstance(text, str) or not {"answer", "label"} & set(row):
        labelled = "question" in row and bool({"image_source", "category"} & set(row)) and "label" not in row
        return "answer" if labelled else None
    if asked is not None:
        return "text" if text.strip() and normalise(text) in normalise(asked) else "answer"
    if "?" in text:
        return "text"
    if "answer" in row and "label" not in row:
        raise UserError(f"{where} has answer and text, and either may be what the model said; call that field response")
    return None


def flatten_sample(row: Any) -> Any:
    """Turn a sample that lmms-eval logs (doc_id, input, filtered_resps) into a row; leave others as they are.

    Its number counts over the task's rows; where the sample holds its document, the document's own id is taken.
    """
    if not isinstance(row, Mapping) or not {"doc_id", "filtered_resps"} <= set(row):
        return row
    doc = row["doc"] if isinstance(row.get("doc"), Mapping) else {}
    own = {name: doc[name] for name in ("question_id", "category", "question") if name in doc}
    asked = _first_text(row.get("input", row.get("arguments")))
    return {
        "question_id": row["doc_id"],
        **({} if asked is None else {"prompt": asked}),
        **own,
        "response": _first_text(row["filtered_resps"]),
    }


def _first_text(value: Any) -> str | None:
    """The first text of nested lists."""
    while isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[0]
    return value if isinstance(value, str) else None

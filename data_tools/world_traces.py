"""Rubrics written by the embedded world, which knows what is wrong in its pairs: a teacher without a model.

The points come from the statements of each response: what both say is level, what the right one alone says is true, what the wrong one
alone says is false.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.data.rows import response_text
from mmalign.errors import UserError
from mmalign.evaluation.judges.rubric import CATEGORIES, POINTS

FLIPPED = "truth_flipped"
"""Whether the rejected response of a row is the right one."""
LEVEL, BEST = POINTS // 2, POINTS - 1
_OBJECT = r"\ban? ((?:\w+ )?(?!and\b)\w+)"


def write_trace(row: Mapping[str, Any], first: str, second: str) -> str:
    """Write the reply of a perfect judge to two responses.

    Args:
        row: A pair of the embedded world.
        first: The response shown first, chosen or rejected.
        second: The other one.

    Raises:
        ValueError: If the row does not say which response is right.
    """
    if not isinstance(row.get(FLIPPED), bool):
        raise UserError(f"the row has no {FLIPPED}, true or false; --teacher world writes about pairs of mmalign world build alone")
    right = response_text(row["rejected" if row[FLIPPED] else "chosen"], "response")
    shown = (first, second)
    said = [_statements(text) for text in shown]
    truth = _statements(right)
    checks = [_check(statement, said, truth) for statement in dict.fromkeys([*said[0], *said[1]])]
    covered = [len([statement for statement in own if statement in truth]) for own in said]
    parts = [
        checks,
        [_dimension("What is there and told", [f"tells {number} of {len(truth)}" for number in covered], _share(*covered))],
        [_dimension("Answers the question", ["answers it", "answers it"], LEVEL)],
    ]
    categories = [_category(name, dims) for name, dims in zip(CATEGORIES, parts, strict=True)]
    points = sum(sum(dim["score_1"] for dim in dims) / len(dims) for dims in parts) / len(parts)
    return json.dumps({"categories": categories, "reason": "The points decide.", "winner": _winner(points)})


def _statements(text: str) -> list[str]:
    """What a response says, piece by piece: objects with their place where it names places, or the words of an answer."""
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        place = re.match(r"At the ([\w ]+?) is ", sentence)
        where = f" at the {place[1]}" if place else ""
        objects = [f"{name}{where}" for name in re.findall(_OBJECT, sentence)]
        found += objects or [sentence.strip(" .")]
    return list(dict.fromkeys(found))


def _check(statement: str, said: Sequence[Sequence[str]], truth: Sequence[str]) -> dict[str, Any]:
    """Judge one statement: saying what is there is good, saying what is not is bad, both alike is level."""
    good = statement in truth
    says = [statement in own for own in said]
    reasons = [("says it, and it is so" if good else "says it, and it is not so") if one else "does not say it" for one in says]
    first = LEVEL if says[0] == says[1] else BEST if says[0] == good else POINTS - BEST
    return _dimension(statement, reasons, first)


def _share(first: int, second: int) -> int:
    """Points of the first of two that cover so much."""
    return LEVEL if first == second else BEST if first > second else POINTS - BEST


def _dimension(name: str, reasons: Sequence[str], first: int) -> dict[str, Any]:
    return {"name": name, "reason_1": reasons[0], "reason_2": reasons[1], "score_1": first, "score_2": POINTS - first}


def _category(name: str, dims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    winner = _winner(sum(dim["score_1"] for dim in dims) / len(dims))
    return {"name": name, "dims": list(dims), "cat_reason": "The points decide.", "cat_winner": winner}


def _winner(points: float) -> int | str:
    return "tie" if abs(points - LEVEL) < 1e-9 else 1 if points > LEVEL else 2

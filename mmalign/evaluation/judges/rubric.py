"""A judge that writes a rubric for the question and scores two responses by it (the form of UnifiedReward-Flex, arXiv:2602.02380).

The keys of the reply are those of the paper's released inference script. The wording, the margin and the rules of consistency are ours.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mmalign.evaluation.reasoning import strip_reasoning
from mmalign.evaluation.verdicts import find_values
from mmalign.evaluation.wording import fill_prompt

CATEGORIES = ("Truth to the image", "Completeness", "Use of the question")
POINTS = 10
# Three categories of three to five lines, with a reason for each response.
REPLY_LENGTH = 2048
# The example is no JSON, so that a reply which only repeats it is none.
PROMPT = """You compare two responses to a question about the image. First make a rubric for this question, then score both by it.

The rubric has the categories "Truth to the image", "Completeness" and "Use of the question", and others of your own where the question \
calls for them. Each category has 3 to 5 dimensions that fit this question and this image. For each dimension, look at the image, say in a \
sentence what speaks for or against each response, and share out 10 points between the two: score_1 + score_2 = 10. Neither length nor \
order earns points.

Reply with one JSON object and nothing else:
{"categories": [{"name": "...", "dims": [{"name": "...", "reason_1": "...", "reason_2": "...", "score_1": N, "score_2": N}], \
"cat_reason": "...", "cat_winner": N}], "reason": "...", "winner": N}
Each N is a number without quotes; cat_winner and winner are 1, 2 or "tie", as the scores say.

Question: {question}

Response 1: {first}

Response 2: {second}
"""
Reading = Literal["strict", "lenient"]
# 1: the first response, -1: the second, 0: neither.
Choice = Literal[1, 0, -1]


class Rubric(NamedTuple):
    """What one reply says.

    Attributes:
        margin: Mean over the categories of the mean over their dimensions of (score_1 - score_2) / 10, in [-1, 1]; None without scores.
        winner: What the reply names; None where it names none.
        problems: Why the reply is inconsistent; empty where it is not.
    """

    margin: float | None
    winner: Choice | None
    problems: tuple[str, ...]

    def choose(self, reading: Reading) -> Choice | None:
        """Return the winner; ``strict`` knows none in an inconsistent reply, ``lenient`` takes the one that it names."""
        return None if reading == "strict" and self.problems else self.winner


class _Category(NamedTuple):
    margin: float | None
    winner: Choice | None
    problems: tuple[str, ...]


def fill_rubric_prompt(question: str, first: str, second: str, *, template: str = PROMPT) -> str:
    """Return what the judge is asked about two responses to a question."""
    return fill_prompt(template, {"question": question, "first": first, "second": second})


def parse_rubric(reply: str) -> Rubric:
    """Read a reply: JSON in fences or bare, behind any reasoning; the last object where there are several."""
    found = next((value for value in find_values(strip_reasoning(reply).text, "{") if isinstance(value, Mapping)), None)
    if found is None:
        return Rubric(None, None, ("no JSON object",))
    rows = found.get("categories")
    if not isinstance(rows, list) or not rows:
        return Rubric(None, _read_winner(found.get("winner")), ("categories is missing, or no list of any",))
    categories = [_read_category(row, f"category {i}") for i, row in enumerate(rows, start=1)]
    margin = _mean([category.margin for category in categories])
    winner = _read_winner(found.get("winner"))
    problems = [problem for category in categories for problem in category.problems]
    problems += _lacking(found, ("reason",), "the reply")
    problems += _contradiction(winner, margin, "winner")
    return Rubric(margin, winner, tuple(problems))


def _read_category(row: Any, place: str) -> _Category:
    if not isinstance(row, Mapping):
        return _Category(None, None, (f"{place} is no object",))
    problems = [*_lacking(row, ("name", "cat_reason"), place)]
    dims = row.get("dims")
    if not isinstance(dims, list) or not dims:
        return _Category(None, None, (*problems, f"{place}: dims is missing, or no list of any"))
    margins = []
    for i, dim in enumerate(dims, start=1):
        margin, found = _read_dimension(dim, f"{place}, dimension {i}")
        margins.append(margin)
        problems += found
    winner, margin = _read_winner(row.get("cat_winner")), _mean(margins)
    return _Category(margin, winner, (*problems, *_contradiction(winner, margin, f"{place}: cat_winner")))


def _read_dimension(dim: Any, place: str) -> tuple[float | None, list[str]]:
    """Return (score_1 - score_2) / 10, and what is wrong."""
    if not isinstance(dim, Mapping):
        return None, [f"{place} is no object"]
    problems = list(_lacking(dim, ("name", "reason_1", "reason_2"), place))
    scores = [dim.get(name) for name in ("score_1", "score_2")]
    if not all(_is_score(score) for score in scores):
        return None, [*problems, f"{place}: the scores are not two numbers from 0 to {POINTS}"]
    first, second = (float(score) for score in scores if score is not None)
    if not math.isclose(first + second, POINTS):
        problems.append(f"{place}: {first:g} and {second:g} are not {POINTS} together")
    return (first - second) / POINTS, problems


def _is_score(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= POINTS


def _read_winner(value: Any) -> Choice | None:
    """1 and 2, as numbers or in words such as "Response 2"; or a tie."""
    words = str(value).strip().lower().split() if isinstance(value, (int, str)) and not isinstance(value, bool) else []
    named: dict[str, Choice] = {"1": 1, "2": -1, "tie": 0}
    return named.get(words[-1]) if words and words[:-1] in ([], ["response"], ["answer"]) else None


def _lacking(row: Mapping[str, Any], names: Sequence[str], place: str) -> Iterator[str]:
    return (f"{place} has no {name}" for name in names if not isinstance(row.get(name), str))


def _contradiction(winner: Choice | None, margin: float | None, place: str) -> list[str]:
    """A winner that is missing, or has not the most points. Where points are level, any may win."""
    if winner is None:
        return [f"{place} is not 1, 2 or tie"]
    ahead = 0 if margin is None or math.isclose(margin, 0, abs_tol=1e-9) else math.copysign(1, margin)
    return [f"{place} has not the most points"] if ahead and winner != ahead else []


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None

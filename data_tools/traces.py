"""Traces of a rubric judge: replies to pairs whose better response is known, how good each is, and what they teach.

A trace is right where it is consistent and names the better response. Its grade is its margin towards that response, in [-1, 1].
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmalign.evaluation.judges.rubric import Rubric, parse_rubric

WORST = -1.0
"""Grade of a reply that contradicts itself or can't be read."""


class Trace(NamedTuple):
    """One reply about a pair.

    Attributes:
        text: As the judge wrote it.
        rubric: What it says.
        side: 1 where the better response was shown first, -1 where it was shown second.
    """

    text: str
    rubric: Rubric
    side: int

    @property
    def usable(self) -> bool:
        """Return whether it is consistent."""
        return not self.rubric.problems

    @property
    def right(self) -> bool:
        """Return whether it is consistent and names the better response."""
        return self.rubric.choose("strict") == self.side

    @property
    def grade(self) -> float:
        """Return the margin towards the better response; ``WORST`` where the reply is inconsistent."""
        return WORST if not self.usable or self.rubric.margin is None else self.rubric.margin * self.side


def read_traces(line: Mapping[str, Any]) -> list[Trace]:
    """Read the replies of a line of work: ``responses``, and the ``side`` of the better response."""
    return [Trace(text, parse_rubric(text), line["side"]) for text in line["responses"]]


def choose_chat(traces: Sequence[Trace]) -> Trace | None:
    """Choose what to imitate: the first right trace."""
    return next((trace for trace in traces if trace.right), None)


def choose_pair(traces: Sequence[Trace], *, graded: bool) -> tuple[Trace, Trace] | None:
    """Choose two traces of one order: a right one against a wrong one, the best against the worst by grade, the first of equals.

    Args:
        traces: Replies to one prompt.
        graded: Where all are right, pair the one with the largest margin with the one with the smallest.
    """
    right = [trace for trace in traces if trace.right]
    wrong = [trace for trace in traces if not trace.right and trace.text.strip()]
    if not right or not (wrong or graded):
        return None
    best, worst = max(right, key=lambda trace: trace.grade), min(wrong or right, key=lambda trace: trace.grade)
    return None if best.grade <= worst.grade or best.text == worst.text else (best, worst)


def mean_gap(orders: Sequence[Sequence[Trace]]) -> float | None:
    """Return how far the consistent traces prefer the better response: the mean margin of each order, and the mean of both.

    None where an order has no consistent trace: one order alone has the position's bias in it.
    """
    grades = [[trace.grade for trace in traces if trace.usable] for traces in orders]
    return None if not all(grades) else sum(sum(own) / len(own) for own in grades) / len(grades)


@dataclass
class TraceCounts:
    """How a judge did: replies, and what became of them."""

    replies: int = 0
    inconsistent: int = 0
    right: int = 0
    ties: int = 0
    prefer_first: int = 0
    prefer_second: int = 0

    def add(self, traces: Iterable[Trace]) -> None:
        """Count replies."""
        for trace in traces:
            choice = trace.rubric.choose("strict")
            self.replies += 1
            self.inconsistent += not trace.usable
            self.right += trace.right
            self.ties += choice == 0
            self.prefer_first += choice == 1
            self.prefer_second += choice == -1

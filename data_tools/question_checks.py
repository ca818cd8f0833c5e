"""What questions say of responses: which response passes which question, its score, and the pair (DSTC, arXiv:2411.13611).

Everything here is numbers: ``says`` of a question holds what each response says to it (yes, no, nothing), ``yes`` the probability of yes
by a model that sees the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Check:
    """A question about an image, and what each response says to it."""

    question: str
    says: list[bool | None]
    yes: float | None = None
    """Probability of yes; None where the model said neither yes nor no."""


class Minimax(NamedTuple):
    """Numbers of the chosen response, of the question that tells it from others, and of the rejected response."""

    chosen: int
    question: int
    rejected: int


def pass_matrix(checks: Sequence[Check]) -> list[list[bool]]:
    """Return which response (row) passes which question (column): it says what the model that sees says. Unclear answers pass none."""
    responses = range(len(checks[0].says)) if checks else ()
    return [[check.yes is not None and check.says[i] is (check.yes > 0.5) for check in checks] for i in responses]


def choose_minimax(passes: Sequence[Sequence[bool]]) -> Minimax | None:
    """Choose a pair by the question that fewest pass (reconstructed; the paper's own rule is not verified).

    Chosen passes most questions. Of those, the one that fewest responses pass is the question. Rejected passes fewest of the responses that
    fail it. The first of equals.

    Returns:
        The choice, or None where every response passes what the chosen one does.
    """
    totals = [sum(row) for row in passes]
    if not totals or max(totals) == 0:
        return None
    chosen = totals.index(max(totals))
    held = [t for t, passed in enumerate(passes[chosen]) if passed]
    question = min(held, key=lambda t: sum(row[t] for row in passes))
    failing = [c for c, row in enumerate(passes) if not row[question]]
    return Minimax(chosen, question, min(failing, key=lambda c: totals[c])) if failing else None


def score_response(checks: Sequence[Check], response: int, *, named_only: bool) -> float | None:
    """Mean agreement with the model that sees, -1 to 1: 2 P(yes) - 1 where a response says yes, 1 - 2 P(yes) where no (ours).

    Args:
        checks: The image's.
        response: Its number.
        named_only: Count only what it says yes to: an object that it does not name is not denied.

    Returns:
        The score; None where it says nothing that counts.
    """
    said = [(check.says[response], check.yes) for check in checks]
    sides = [(2 * yes - 1) * (1 if says else -1) for says, yes in said if yes is not None and says is not None and (says or not named_only)]
    return sum(sides) / len(sides) if sides else None


def one_way_share(answers: Sequence[float]) -> float:
    """Return the share of the commoner of yes and no; 0 without answers."""
    said_yes = sum(yes > 0.5 for yes in answers)
    return max(said_yes, len(answers) - said_yes) / max(len(answers), 1)

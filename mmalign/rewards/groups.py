"""Groups of answers to one prompt and their rewards: what a reward is, how its numbers are checked, and what is made of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from mmalign.data.messages import text_of
from mmalign.data.numbers import is_finite
from mmalign.data.rows import QuestionRow
from mmalign.errors import UserError
from mmalign.evaluation.reasoning import decode_answer


class Group(NamedTuple):
    """A prompt with the answers that a policy gave to it."""

    question: QuestionRow
    responses: list[str]
    """With their reasoning; an answer without words is empty."""
    row: Mapping[str, Any]
    """The columns of the data."""

    @property
    def id(self) -> str:
        """The row's."""
        return self.question.id

    @property
    def prompt(self) -> str:
        """The text of the last turn."""
        return text_of(self.question.prompt[-1])


def read_group(
    processor: Any, question: QuestionRow, row: Mapping[str, Any], *, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> Group:
    """Decode the answers to a question.

    Args:
        processor: The policy's.
        question: What was asked.
        row: The columns of the data.
        prompt: Tokens before the answers.
        answers: Tokens of each, without an end.
    """
    return Group(question, [decode_answer(processor, ids, prompt=prompt) for ids in answers], row)


Rewards = list[float | None]
"""One for each answer of a group, higher is better; None: this answer can't be scored."""


class Reward(Protocol):
    """Scores the answers of groups."""

    columns: Sequence[str]
    """Columns that its rows must have."""

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Raise UserError if the answers to this row can't be scored."""

    def check_inputs(self) -> Any:
        """Name what ``check`` depends on beside the row."""

    def __call__(self, groups: Sequence[Group]) -> list[Rewards]:
        """Score every answer of each group."""


def score_groups(reward: Reward, groups: Sequence[Group], *, name: str) -> list[Rewards]:
    """Ask a reward, and check its numbers.

    Args:
        reward: What is asked.
        groups: The answers.
        name: What the user calls the reward.

    Raises:
        ValueError: If it gives another number of rewards than answers, or one that is not finite; the message names the row.
    """
    found = reward(groups)
    for group, rewards in zip(groups, found, strict=True):
        if len(rewards) != len(group.responses):
            raise UserError(
                f"reward {name} gave {len(rewards)} numbers for {len(group.responses)} answers to row {group.id}; expected as many"
            )
        for response, value in zip(group.responses, rewards, strict=True):
            if value is not None and not is_finite(value):
                raise UserError(
                    f"reward {name} gave {value!r} for an answer to row {group.id}: {response[:80]!r}; expected a finite number, or None "
                    "for an answer that can't be scored"
                )
    return [[None if value is None else float(value) for value in rewards] for rewards in found]


def win_rates(scores: Sequence[float]) -> list[float]:
    """Turn a prompt's scores into rewards: the share of its other samples that each one beats, a tie as half (DNO, Alg. 1)."""
    beaten = [sum((score > other) + (score == other) / 2 for other in scores) - 0.5 for score in scores]
    return [value / (len(scores) - 1) for value in beaten]


def mark_right(scores: Sequence[float], correct: float | None) -> list[float]:
    """Turn scores into 1 (from ``correct`` on) and 0; None leaves them."""
    return list(scores) if correct is None else [float(score >= correct) for score in scores]

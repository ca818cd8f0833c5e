"""Two responses compared by a judge in both orders: what it says twice counts, and how much the order decides is counted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from mmalign.evaluation.answers import Question
from mmalign.evaluation.judges.image_questions import ImageQuestions
from mmalign.evaluation.judges.rubric import PROMPT, REPLY_LENGTH, Choice, Reading, Rubric, fill_rubric_prompt, parse_rubric
from mmalign.evaluation.judging import Judge


class Compared(NamedTuple):
    """Two responses to one question, as seen in both orders.

    Attributes:
        forward: The reply where the first response was shown first.
        backward: The reply where it was shown second.
        winner: 1 where both replies prefer the first response, -1 where both prefer the second, else 0; None where one reply can't be used.
        margin: Of the first response over the second, mean of both orders; None where one reply can't be used.
    """

    forward: Rubric
    backward: Rubric
    winner: Choice | None
    margin: float | None

    @property
    def first_wins(self) -> float:
        """Return how far the first response beats the second: 1, 0, or 1/2 for a tie, a disagreement of the orders, or no verdict."""
        return 0.5 if self.winner is None else (1 + self.winner) / 2


@dataclass(frozen=True)
class PositionBias:
    """How a judge's verdicts depend on the order.

    Attributes:
        pairs: Compared in both orders.
        inconsistent: Replies that contradict themselves, or can't be read.
        unknown: Pairs without a verdict, as one of their replies can't be used.
        disagreements: Pairs, of the others, in which the orders lead to different verdicts: a tie.
        first, second, ties: Replies that prefer the response shown first, the one shown second, or neither.
    """

    pairs: int
    inconsistent: int
    unknown: int
    disagreements: int
    first: int
    second: int
    ties: int

    @property
    def first_share(self) -> float | None:
        """Of the replies with a winner, those that prefer the response shown first: 1/2 without a bias; None where there are none."""
        return self.first / (self.first + self.second) if self.first + self.second else None


class RubricJudge:
    """Asks a judge that sees the image for a rubric and scores of two responses, in both orders."""

    def __init__(
        self, judge: Judge, questions: ImageQuestions, *, template: str = PROMPT, length: int = REPLY_LENGTH, reading: Reading = "strict"
    ) -> None:
        """Prepare.

        Args:
            judge: Is asked keys of ``questions``: an ``OpenAIJudge`` with its ``request``, or a ``LookingJudge``.
            questions: Holds the images.
            template: The wording, with ``{question}``, ``{first}`` and ``{second}``.
            length: Longest reply in tokens.
            reading: What an inconsistent reply counts for: nothing, or the winner that it names.
        """
        self._judge, self._questions, self._template, self._length, self._reading = judge, questions, template, length, reading

    def compare(self, pairs: Sequence[tuple[Question, str, str]]) -> list[Compared]:
        """Compare two responses to each question about an image; all are asked at once.

        Raises:
            ValueError: If an image is broken, or the judge leaves prompts unanswered.
        """
        keys = [self._key(question, *shown) for question, a, b in pairs for shown in ((a, b), (b, a))]
        replies = [parse_rubric(reply) for reply in self._judge.ask(keys)]
        return [compare_orders(*both, reading=self._reading) for both in zip(replies[::2], replies[1::2], strict=True)]

    def rate(self, items: Sequence[tuple[Question, Sequence[str]]]) -> tuple[list[list[float]], list[Compared]]:
        """Compare every two responses to each question, and return each one's rate of wins over the others (``win_rates``).

        Equal responses tie without being asked about.
        """
        games = [(i, a, b) for i, (_, responses) in enumerate(items) for a, b in combinations(dict.fromkeys(responses), 2)]
        compared = self.compare([(items[i][0], a, b) for i, a, b in games])
        won: dict[tuple[int, str, str], float] = {}
        for (i, a, b), one in zip(games, compared, strict=True):
            won |= {(i, a, b): one.first_wins, (i, b, a): 1 - one.first_wins}
        rates = [win_rates([[won.get((i, a, b), 0.5) for b in responses] for a in responses]) for i, (_, responses) in enumerate(items)]
        return rates, compared

    def _key(self, question: Question, first: str, second: str) -> str:
        prompt = fill_rubric_prompt(question.prompt, first, second, template=self._template)
        return self._questions.add(Question(question.id, question.image, prompt, self._length))


def compare_orders(forward: Rubric, backward: Rubric, *, reading: Reading = "strict") -> Compared:
    """Join what a judge said of two responses in both orders."""
    ahead, behind = forward.choose(reading), backward.choose(reading)
    if ahead is None or behind is None:
        return Compared(forward, backward, None, None)
    margin = None if forward.margin is None or backward.margin is None else (forward.margin - backward.margin) / 2
    return Compared(forward, backward, ahead if ahead == -behind else 0, margin)


def win_rates(wins: Sequence[Sequence[float]]) -> list[float]:
    """Return each response's mean of P(it beats another) over the others (DNO, arXiv:2404.03715, Algorithm 1).

    Args:
        wins: Square: 1 where the response of the row beats the one of the column, 0 where it loses, 1/2 for a tie.
    """
    others = max(1, len(wins) - 1)
    return [sum(p for j, p in enumerate(row) if j != i) / others for i, row in enumerate(wins)]


def measure_position_bias(compared: Iterable[Compared], *, reading: Reading = "strict") -> PositionBias:
    """Count over pairs how a judge's verdicts depend on the order."""
    all_pairs = list(compared)
    replies = [reply for pair in all_pairs for reply in (pair.forward, pair.backward)]
    chosen = [reply.choose(reading) for reply in replies]
    known = [pair for pair in all_pairs if pair.winner is not None]
    return PositionBias(
        pairs=len(all_pairs),
        inconsistent=sum(bool(reply.problems) for reply in replies),
        unknown=len(all_pairs) - len(known),
        disagreements=sum(pair.forward.choose(reading) != _turned(pair.backward.choose(reading)) for pair in known),
        first=chosen.count(1),
        second=chosen.count(-1),
        ties=chosen.count(0),
    )


def _turned(choice: Choice | None) -> int | None:
    return None if choice is None else -choice

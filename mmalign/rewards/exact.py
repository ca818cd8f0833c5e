"""Rewards by what is known: the right answers to a question, the objects that an image holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.data.rows import row_id
from mmalign.errors import UserError
from mmalign.evaluation.chair import load_chair
from mmalign.evaluation.object_words import find_mentions
from mmalign.evaluation.reasoning import strip_reasoning
from mmalign.files import hash_file
from mmalign.rewards.groups import Group, Rewards

ANSWER, TRUTH = "answer", "truth"


def plain_answer(text: str) -> str:
    """Reduce an answer to what is compared: lower case, single spaces, no marks around it."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'*`")


def score_answer(response: str, answers: Sequence[str]) -> float:
    """Score 1 where a response, without its reasoning, is one of the answers, letter case, spaces and marks around it aside; else 0."""
    return float(plain_answer(strip_reasoning(response).text) in map(plain_answer, answers))


def score_objects(response: str, truth: frozenset[str], words: Mapping[str, str]) -> float:
    """Score (objects named and there - objects named and absent) / objects there, each object once, by a word table."""
    named = {mention.name for mention in find_mentions(response, words)}
    return (len(named & truth) - len(named - truth)) / max(len(truth), 1)


class AnswerReward:
    """Column ``answer``: text, or a list of texts that are all right."""

    columns: Sequence[str] = (ANSWER,)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """The row has an answer."""
        _read_answers(raw)

    def check_inputs(self) -> Any:
        """The column's name."""
        return [ANSWER]

    def __call__(self, groups: Sequence[Group]) -> list[Rewards]:
        """1 or 0."""
        return [[score_answer(response, _read_answers(group.row)) for response in group.responses] for group in groups]


class ObjectReward:
    """Objects by a folder in CHAIR's form: its word list, and what each image holds where the row's ``truth`` does not say."""

    columns: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        """Read the folder.

        Raises:
            ValueError: If it can't be read.
        """
        self._chair = load_chair(folder)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """What the image holds is known, and the words name it."""
        unknown = self._truth(raw, row_id(raw, index=index)) - set(self._chair.words.values())
        if unknown:
            raise UserError(f"{TRUTH} holds {', '.join(sorted(unknown))}, which the word list does not name")

    def check_inputs(self) -> Any:
        """The files."""
        return {path.name: hash_file(path) for path in self._chair.files}

    def __call__(self, groups: Sequence[Group]) -> list[Rewards]:
        """From -infinity to 1."""
        words = self._chair.words
        return [
            [score_objects(strip_reasoning(response).text, self._truth(group.row, group.id), words) for response in group.responses]
            for group in groups
        ]

    def _truth(self, raw: Mapping[str, Any], identifier: str) -> frozenset[str]:
        if raw.get(TRUTH) is not None:
            if not (isinstance(raw[TRUTH], list) and all(isinstance(name, str) for name in raw[TRUTH])):
                raise UserError(f"{TRUTH} is {raw[TRUTH]!r}; expected a list of names of objects")
            return frozenset(raw[TRUTH])
        if identifier not in self._chair.truths:
            raise UserError(f"the row has no {TRUTH}, and no image of the reward's folder has its id {identifier}")
        return self._chair.truths[identifier]


def _read_answers(raw: Mapping[str, Any]) -> list[str]:
    given = raw.get(ANSWER)
    answers: list[Any] = given if isinstance(given, list) else [given]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise UserError(f"{ANSWER} is {given!r}; expected text, or a list of texts that are all right")
    return answers

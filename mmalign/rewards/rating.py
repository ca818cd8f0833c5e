"""Rewards by a judge that reads a reference: a language model which sees no image."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.errors import UserError
from mmalign.evaluation.judging import Judge
from mmalign.evaluation.reasoning import strip_reasoning
from mmalign.evaluation.verdicts import find_rating
from mmalign.evaluation.wording import fill_prompt
from mmalign.rewards.groups import Group, Rewards

REFERENCE = "reference"
LOWEST, HIGHEST = 1, 10
_SCALE = range(LOWEST, HIGHEST + 1)
_ASKED = re.compile(rf"\b{LOWEST}\s*(?:-|\u2013|to)\s*{HIGHEST}\b")
# Without a label: "7/10", "7 - mostly true", "I give it 7." Of several numbers none is the rating.
_BARE = (
    re.compile(rf"\b(\d+)\s*(?:/|out of)\s*{HIGHEST}\b"),
    re.compile(r"\A\W*(\d+)(?![\d.]*\d|\s*(?:/|or|to|-|\u2013)\s*\d)"),
    re.compile(r"\A\D*(?<![\w.])(\d+)(?!\w)\D*\Z"),
)
RATING = """A response describes or answers a question about an image. You can't see the image; a reference tells what it shows.

Question: {question}
Reference: {reference}
Response: {response}

How well does the response agree with the reference? Take off for everything that contradicts it or that it gives no reason to believe;
don't reward length. Reply with one whole number from 1 (mostly false) to 10 (all true) and nothing else."""


def rating_prompt(question: str, reference: str, response: str, *, wording: str = RATING) -> str:
    """What a judge is asked."""
    return fill_prompt(wording, {"question": question, "reference": reference, "response": response})


def parse_rating(reply: str) -> float | None:
    """Read the rating of a reply, behind its reasoning: one with a label or alone (``find_rating``), else a bare number that must be it.

    None where it is no whole number from 1 to 10.
    """
    text = _ASKED.sub("", strip_reasoning(reply).text)
    bare = next((found[-1] for form in _BARE if (found := form.findall(text))), None)
    rating = find_rating(text, scale=_SCALE)
    if rating is None and bare is not None and int(bare) in _SCALE:
        rating = int(bare)
    return None if rating is None else float(rating)


class JudgeReward:
    """Column ``reference``: what the image shows, or the right answer."""

    columns: Sequence[str] = (REFERENCE,)

    def __init__(self, judge: Judge, wording: str | None) -> None:
        """Hold whom to ask, and in which words; None: ``RATING``."""
        self._judge, self._wording = judge, wording or RATING

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """The row has a reference."""
        if not isinstance(raw.get(REFERENCE), str) or not raw[REFERENCE].strip():
            raise UserError(f"{REFERENCE} is {raw.get(REFERENCE)!r}; expected the text that a judge compares answers with")

    def check_inputs(self) -> Any:
        """The column's name."""
        return [REFERENCE]

    def __call__(self, groups: Sequence[Group]) -> list[Rewards]:
        """Ratings, 1 to 10; None where the reply has none. An answer without words is 1, and nobody is asked."""
        said = [(group, strip_reasoning(response).text) for group in groups for response in group.responses]
        asked = [rating_prompt(group.prompt, group.row[REFERENCE], text, wording=self._wording) for group, text in said if text.strip()]
        ratings = iter(map(parse_rating, self._judge.ask(asked)))
        values = iter([next(ratings) if text.strip() else float(LOWEST) for _, text in said])
        return [[next(values) for _ in group.responses] for group in groups]

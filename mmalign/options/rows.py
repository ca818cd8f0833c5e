"""How rows of conversations are read."""

from dataclasses import dataclass
from typing import Literal

AnswerEnd = Literal["token", "template"]


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What ends an answer."""

    answer_end: AnswerEnd = "token"
    """where the chat template writes no end behind an answer: put the end token there, or keep the template's way"""

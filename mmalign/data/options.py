"""How conversations are read: options of every command that reads them. Nothing heavy is imported here, so that --help comes at once."""

from dataclasses import dataclass, field
from typing import Literal

AnswerEnd = Literal["token", "template"]


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What ends an answer."""

    answer_end: AnswerEnd = field(
        default="token",
        metadata={"help": "where the chat template writes no end behind an answer: put the end token there, or keep the template's way"},
    )

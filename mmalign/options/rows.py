"""How rows of the data are read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.errors import UserError
from mmalign.options.base import Options

AnswerEnd = Literal["token", "template"]
Weakening = Literal["crop", "mask", "noise", "diffusion", "blank", "none"]


@dataclass(frozen=True, kw_only=True)
class RowOptions(Options):
    """Which rows are read."""

    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
    max_length: int | None = None
    """longest row in tokens, images included; longer ones are rejected"""
    max_reject_share: float = 0.05
    """stop if more than this share of rows is broken"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "max_length")
        self.refuse_no_share("max_reject_share")


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(Options):
    """What ends an answer."""

    answer_end: AnswerEnd = "token"
    """where the chat template writes no end behind an answer: put the end token there, or keep the template's way"""


@dataclass(frozen=True, kw_only=True)
class PackingOptions(Options):
    """How prompts are laid out as the model's rows."""

    row_tokens: int | None = None
    """pack several prompts with their responses into rows of at most this many tokens, blind to each other: less padding, equal numbers"""

    def __post_init__(self) -> None:
        """Refuse rows of no length."""
        super().__post_init__()
        if self.row_tokens is not None and self.row_tokens < 1:
            raise UserError(f"row_tokens is {self.row_tokens}; expected a number of tokens, such as 4096")


@dataclass(frozen=True, kw_only=True)
class ShardOptions(RowOptions, AnswerOptions):
    """Rows that go through a frozen multimodal LLM."""

    batch_size: int = 16
    """rows at once"""
    shard: str = "1/1"
    """do part i/N alone, i from 1; the parts may run on different machines"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "batch_size")


@dataclass(frozen=True, kw_only=True)
class WordingOptions(Options):
    """How a reward model is asked about a response."""

    question: str = "Is this answer right? Answer yes or no."
    """the user's turn behind a response"""
    answers: list[str] = field(default_factory=lambda: ["yes", "no"])
    """the words for right and for wrong, a token each: the reward is the difference of their logits"""

    def __post_init__(self) -> None:
        """Refuse a question without words, and answers that are not two."""
        super().__post_init__()
        if not self.question.strip():
            raise UserError("question has no words; expected one that the answers fit, such as 'Is this answer right? Answer yes or no.'")
        if len(self.answers) != 2 or len(set(self.answers)) < 2 or not all(map(str.strip, self.answers)):
            raise UserError(f"answers are {self.answers}; expected two words, the one for right first, such as yes no")


@dataclass(frozen=True, kw_only=True)
class WeakenOptions(Options):
    """The image that objectives compare with the row's own."""

    weaken: Weakening = "crop"
    """how it is made of the row's own: a small part, a third masked, noise, half way to noise, grey, or no image"""
    weaken_seed: int = 0
    """draws it, once per row"""


@dataclass(frozen=True, kw_only=True)
class PictureOptions(Options):
    """What answers are."""

    pictures: bool = False
    """answers are pictures, drawn token by token: rows have caption, and image (sft), image_chosen and image_rejected (preference), or
    images_responses and scores (listwise)"""
    picture_side: int | None = None
    """Emu3: height and width of pictures in pixels, a multiple of 8, the same for training and sample-images; default: 720"""

    def __post_init__(self) -> None:
        """Refuse a size of nothing."""
        super().__post_init__()
        self.refuse_below(1, "picture_side")
        if self.picture_side is not None and not self.pictures:
            raise UserError(f"picture_side is {self.picture_side}, and answers are words; add --pictures, or leave it out")

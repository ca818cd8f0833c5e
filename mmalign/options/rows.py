"""How rows of the data are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(Options):
    """What ends an answer."""

    answer_end: AnswerEnd = "token"
    """where the chat template writes no end behind an answer: put the end token there, or keep the template's way"""


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
class WeakenOptions(Options):
    """The image that objectives compare with the row's own."""

    weaken: Weakening = "crop"
    """how it is made of the row's own: a small part, a third masked, noise, half way to noise, grey, or no image"""
    weaken_seed: int = 0
    """draws it, once per row"""

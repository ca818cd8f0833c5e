"""Pictures that a model draws."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.errors import UserError
from mmalign.options.precision import DtypeOptions
from mmalign.options.tokens import TokenOptions


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(TokenOptions):
    """How pictures are drawn."""

    samples: int = 1
    """pictures per caption"""
    guidance: float = 5.0
    """logits are u + guidance (c - u), with the caption (c) and without (u); 1: with the caption alone, at half the cost"""
    temperature: float = 1.0
    """of sampling; 0: the likeliest token, always"""
    seed: int = 0
    """the same seed gives the same pictures"""
    picture_side: int | None = None
    """Emu3: height and width of pictures in pixels, a multiple of 8; default: 720"""

    def __post_init__(self) -> None:
        """Refuse what is no distribution, and several likeliest pictures."""
        super().__post_init__()
        self.refuse_below(1, "samples", "picture_side")
        self.refuse_below(0, "temperature", "guidance", "seed")
        if self.temperature == 0 and self.samples > 1:
            raise UserError(f"samples is {self.samples}, and with temperature 0 they would all be the same picture; leave one out")


@dataclass(frozen=True, kw_only=True)
class SampleImagesOptions(DrawingOptions, DtypeOptions):
    """Options of ``mmalign sample-images``."""

    captions: Path = field(metadata={"positional": True})
    """captions: parquet, json or jsonl file with a column caption, or a folder of them"""
    model: str
    """multimodal LLM that draws: folder or hub id"""
    out: Path
    """folder; its data/ holds the pictures"""
    batch_size: int = 8
    """captions at once"""
    shard: str = "1/1"
    """do part i/N alone, i from 1; the parts may run on different machines"""
    max_reject_share: float = 0.05
    """stop if more than this share of captions is broken"""

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        super().__post_init__()
        self.refuse_below(1, "batch_size")

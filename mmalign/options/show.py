"""Looking at rows."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.options.rows import AnswerOptions, RowOptions


@dataclass(frozen=True, kw_only=True)
class ShowOptions(RowOptions, AnswerOptions):
    """Options of ``mmalign show``."""

    data: Path = field(metadata={"positional": True})
    """chats, pairs or lists: parquet, json or jsonl file, or a folder of them"""
    model: str
    """multimodal LLM whose processor and chat template are used: folder or hub id; its weights are not read"""
    out: Path
    """the page: an .html file"""
    num_rows: int = 24
    """rows shown, drawn at random"""
    seed: int = 0
    """of the draw"""
    max_reject_share: float = 1.0
    """stop if more than this share of the drawn rows is broken"""
    title: str = "Rows as the model sees them"
    """title of the page"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "num_rows")

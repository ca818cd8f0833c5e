"""Options of ``collect_traces.py``, apart from what it does, so that --help comes at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_tools.sample_options import DrawOptions
from mmalign.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TraceOptions(DrawOptions):
    """Options of ``collect_traces.py``."""

    data: Path = field(metadata={"positional": True})
    """pairs: parquet, json or jsonl file, or folder of them"""
    model: str = ""
    """the judge, a multimodal LLM: folder or hub id; with --endpoint its name there"""
    teacher: Literal["model", "world"] = "model"
    """who writes the replies: the model, or the embedded world, which knows what is wrong in its pairs"""
    graded: bool = False
    """where all replies to a prompt are right, pair the largest margin with the smallest"""
    prompt: Path | None = None
    """text file with another wording, which holds {question}, {first} and {second}"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
    max_new_tokens: int = 2048
    """longest reply in tokens"""
    max_reject_share: float = 0.05
    """stop if more than this share of pairs is broken"""

    def __post_init__(self) -> None:
        """Refuse a teacher and a model together, or neither, and numbers that make no sense."""
        super().__post_init__()
        self.refuse_no_share("max_reject_share")
        if (self.teacher == "world") == bool(self.model):
            raise UserError(f"--teacher {self.teacher} and --model {self.model!r}: name the judge with --model, or --teacher world alone")

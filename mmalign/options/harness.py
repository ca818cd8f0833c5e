"""Tasks for lmms-eval."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.options.base import Options

Task = Literal["pope", "repope", "dash-b", "amber"]


@dataclass(frozen=True, kw_only=True)
class LmmsTasksOptions(Options):
    """Options of ``mmalign lmms-tasks``."""

    data: Path = field(metadata={"positional": True})
    """the benchmark's own files: question file, or folder of them"""
    benchmark: Task = "pope"
    """which benchmark; of AMBER the yes-or-no questions"""
    images: Path
    """folder of the images"""
    out: Path
    """folder to give to lmms-eval as --include_path; it may hold several tasks"""
    prompt_suffix: str = ""
    """text behind every question, such as LLaVA's single-word request"""
    max_new_tokens: int = 128
    """longest answer in tokens; as mmalign evaluate's if not given"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "max_new_tokens")

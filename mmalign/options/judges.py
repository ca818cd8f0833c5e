"""A judge: a language model that rates answers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(Options):
    """Who judges answers, where a benchmark or a reward asks for a judge."""

    judge_url: str | None = None
    """judge behind this OpenAI-compatible endpoint"""
    judge_model: str | None = None
    """its model; with saved replies of several judges, whose are meant"""
    judge_key_env: str = "auto"
    """environment variable with its key, or none; auto: OPENAI_API_KEY, or none for a local server if unset"""
    judge_decoding: dict[str, Any] = field(default_factory=dict)
    """'{max_completion_tokens: 4096, temperature: null}': sent with each request, null is not; for --judge max_new_tokens"""
    judge_timeout: float = 120.0
    """seconds that a request to the endpoint may take"""
    judge_retries: int = 10
    """times that a request which failed in passing is sent again"""
    judge_concurrency: int = 8
    """most requests at once"""
    judge: str | None = None
    """judge with this local model: folder or hub id"""
    judge_prompt: Path | None = None
    """text file with another wording for the judge"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "judge_concurrency")
        self.refuse_below(0, "judge_retries")
        if not self.judge_timeout > 0:
            raise UserError(f"judge_timeout is {self.judge_timeout}; expected a positive number of seconds")

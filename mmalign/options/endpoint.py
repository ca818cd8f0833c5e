"""A model behind an OpenAI-compatible endpoint that reads images."""

from dataclasses import dataclass, field
from typing import Any

from mmalign.errors import UserError
from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class EndpointOptions(Options):
    """A model behind an endpoint, instead of a local one."""

    endpoint: str | None = None
    """answer with a model behind this OpenAI-compatible endpoint that reads images, such as http://127.0.0.1:8000/v1"""
    endpoint_key_env: str = "auto"
    """environment variable with its key, or none; auto: OPENAI_API_KEY, or none for a local server if unset"""
    endpoint_decoding: dict[str, Any] = field(default_factory=dict)
    """'{temperature: null, top_k: 20}': sent with each question, over what is sent anyway; null is not sent"""
    endpoint_timeout: float = 120.0
    """seconds that a question may take"""
    endpoint_retries: int = 10
    """times that a question which failed in passing is asked again"""
    endpoint_concurrency: int = 8
    """most questions at once"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "endpoint_concurrency")
        self.refuse_below(0, "endpoint_retries")
        if not self.endpoint_timeout > 0:
            raise UserError(f"endpoint_timeout is {self.endpoint_timeout}; expected a positive number of seconds")

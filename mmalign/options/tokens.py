"""Which tokens are sampled from."""

from dataclasses import dataclass

from mmalign.errors import UserError
from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class TokenOptions(Options):
    """How many of a distribution's tokens may be sampled."""

    top_p: float = 1.0
    """sample from the likeliest tokens that have this probability together"""
    top_k: int = 0
    """sample from this many of the likeliest tokens; 0: from all"""

    def __post_init__(self) -> None:
        """Refuse what is no share of the tokens."""
        super().__post_init__()
        self.refuse_below(0, "top_k")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; expected more than 0 and at most 1")

"""What a benchmark with a judge needs of it."""

from collections.abc import Sequence
from typing import Protocol


class Judge(Protocol):
    """A model that judges answers by reading a prompt about each."""

    @property
    def name(self) -> str:
        """The model, as results name it: scores of different judges can't be compared."""
        ...

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Answer each prompt; the order is kept."""
        ...

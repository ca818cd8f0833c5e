"""What a judge decides of an answer, as one of a few values: two judges are compared by it."""

from collections.abc import Callable
from dataclasses import dataclass

from mmalign.evaluation.items import Item


@dataclass(frozen=True)
class Decision:
    """One thing that a judge decides.

    Attributes:
        values: What it can be.
        read: Finds it in a judged answer; None where the judge's reply could not be read.
        ordered: Whether the values are steps of a scale, so that a near miss is better than a far one.
    """

    values: tuple[str, ...]
    read: Callable[[Item], str | None]
    ordered: bool = False

    def find(self, item: Item | None) -> str | None:
        """Return the value; None where the reply could not be read, or not even scored."""
        return None if item is None else self.read(item)


def read_correct(item: Item) -> str | None:
    """Whether the judge takes an answer for right."""
    return None if item.correct is None else "right" if item.correct else "wrong"


RIGHT_OR_WRONG = Decision(("right", "wrong"), read_correct)

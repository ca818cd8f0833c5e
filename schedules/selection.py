"""Which of a prompt's samples are chosen and which are rejected, by their scores."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def select_pairs(scores: Sequence[float], *, min_score: float | None, min_gap: float | Sequence[float], most: int) -> list[tuple[int, int]]:
    """Choose a prompt's pairs by margin: numbers of chosen and rejected, the widest margin first, ties in the order of the responses.

    ``min_gap`` may be a number for each response, for the pairs in which it is chosen.
    """
    gaps = min_gap if isinstance(min_gap, Sequence) else [min_gap] * len(scores)
    good = [i for i, score in enumerate(scores) if min_score is None or score >= min_score]
    pairs = [(i, j) for i in good for j, score in enumerate(scores) if scores[i] - score >= gaps[i]]
    return sorted(pairs, key=lambda pair: scores[pair[1]] - scores[pair[0]])[:most]


def repeats(text: str, most: int) -> bool:
    """Whether any four words in a row stand more than ``most`` times in a text."""
    words = text.split()
    counts = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    return max(counts.values(), default=0) > most


def demote_repetitions(row: Mapping[str, Any], *, most: int, gap: float) -> list[float]:
    """Return a prompt's scores, those of responses that repeat themselves ``gap`` below the lowest (DNO has no rule for it: ours)."""
    lowest = min(row["scores"]) - gap
    return [lowest if repeats(text, most) else score for text, score in zip(row["responses"], row["scores"], strict=True)]

"""Which of two options an answer names, by its letter or in its words."""

import re
from collections.abc import Sequence

from mmalign.evaluation.yes_no import parse_strict as parse_yes_no

LETTERS = ("(a)", "(b)")
# Where a letter stands for an answer: at the beginning, in brackets, or behind "answer is" or "option"; never as the article.
_LETTER = re.compile(
    r"^\W*([ab])(?=[).:]|\W*$)|\(\s*([ab])\s*\)|\b(?:answer|option)(?:\s+is)?:?\s*([ab])(?=[.:,]|\W*$)",
    re.IGNORECASE,
)
# The places in which lmms-eval 0.7 looks for a letter, in its order.
_OFFICIAL = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (r"^\(?([ab])\)?\.?$", r"^\(?([ab])\)?[.\s]", r"answer\s+is\s+\(?([ab])", r"option\s+\(?([ab])", r"([ab])\)?(?:\s|$)")
]


def parse_official(answer: str) -> int | None:
    """Return the option that a letter names, where lmms-eval finds one; it takes the article for a letter, and ends of words."""
    text = answer.strip()
    found = next((match for pattern in _OFFICIAL if (match := pattern.search(text))), None)
    letter = found[1] if found else text[:1]
    return "ab".index(letter.lower()) if letter and letter in "abAB" else None


def parse_strict(answer: str, options: Sequence[str], *, lettered: bool = True) -> int | None:
    """Return the option that an answer names: by its letter, else by its words; None where it names neither, or both.

    Of yes and no the first one counts, as in other benchmarks.
    """
    found = _LETTER.search(answer) if lettered else None
    if found is not None:
        return "ab".index(next(filter(None, found.groups())).lower())
    words = [option.lower() for option in options]
    if set(words) == {"yes", "no"}:
        is_yes = parse_yes_no(answer)
        return None if is_yes is None else words.index("yes" if is_yes else "no")
    # The longer first: "more than one" names no "one".
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    named = set(re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", answer.lower()))
    return words.index(named.pop()) if len(named) == 1 else None

"""Which of two options an answer names, by its letter or in its words."""

import re
from collections.abc import Sequence

from mmalign.evaluation.yes_no import parse_strict as parse_yes_no

LETTERS = ("(a)", "(b)")
# Where a letter stands for an answer, the surest place first: behind "answer is", "it is" or "option", at the beginning, in brackets; never
# as the article: punctuation or a line's end follows, and no hyphen or slash.
_END = r"(?=[^\w\s'\u2019/-]|\s*\n|\W*$)"
_LABELLED = re.compile(
    r"\b(?:(?:answer|option|choice|choose|pick|select)(?:\s+is)?|it(?:'s|\s+is))(?:(?![.!?])\W)*([ab])" + _END, re.IGNORECASE
)
_FIRST = re.compile(r"^\W*([ab])" + _END, re.IGNORECASE)
_IN_BRACKETS = re.compile(r"\(\s*([ab])\s*\)", re.IGNORECASE)
# "not (a)", "isn't open", "rather than closed".
_NOT = r"(?:\bnot|n['\u2019]t|\brather than|\binstead of)\s+(?:be\s+)?(?:an?\s+|the\s+)?(?:option\s+)?"
_MARKDOWN = re.compile(r"[*`$]|(?<!\w)_+|_+(?!\w)")
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

    Options that it only repeats, "(a) Open (b) Closed", or denies, "not open", are not named. Yes and no are read as in other benchmarks.
    """
    text = _MARKDOWN.sub("", answer)
    words = [option.lower() for option in options]
    if lettered:
        first, second = (rf"(?:option\s+)?\(?\b{letter}[).:]+\s*{re.escape(word)}" for letter, word in zip("ab", words, strict=True))
        text = re.sub(rf"{first}\W*{second}", " ", text, flags=re.IGNORECASE)
        text = re.sub(_NOT + r"\(?\s*[ab]\s*\)", " ", text, flags=re.IGNORECASE)
        found = next(reversed(list(_LABELLED.finditer(text))), None) or _FIRST.search(text)
        letters = {found[1].lower()} if found else {letter.lower() for letter in _IN_BRACKETS.findall(text)}
        if letters:
            return "ab".index(letters.pop()) if len(letters) == 1 else None
    if set(words) == {"yes", "no"}:
        is_yes = parse_yes_no(text)
        return None if is_yes is None else words.index("yes" if is_yes else "no")
    # The longer first: "more than one" names no "one".
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    text = re.sub(rf"{_NOT}(?:{pattern})(?!\w)", " ", text.lower())
    named = set(re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text))
    return words.index(named.pop()) if len(named) == 1 else None

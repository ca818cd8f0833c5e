"""A response cut into sentences by rules, without models or data files: for a text tower that holds a sentence and no paragraph."""

import re
from collections.abc import Callable

from mmalign.errors import UserError

_CLOSING = "\"'”’»)\\]」』】）〉》"  # noqa: RUF001
# The full stops of Chinese, Japanese, Hindi and Urdu, and their question and exclamation marks, need no space behind them.
_END = re.compile(rf"[.!?…]+[{_CLOSING}]*(?=\s)|[。！？｡।॥۔؟]+[{_CLOSING}]*|\n\s*")  # noqa: RUF001
# Words with a full stop that always go on.
_NEVER = {"dr", "mr", "mrs", "ms", "prof", "st", "mt", "gen", "lt", "col", "sgt", "capt", "rev", "hon", "sen", "gov"}
_NEVER |= {"e.g", "i.e", "cf", "vs", "al", "approx", "ca", "viz", "z.b", "d.h", "bzw"}
# That go on before a number: "No. 5", and not "No. There is none."
_BEFORE_NUMBERS = {"no", "nr", "fig", "figs", "eq", "vol", "p", "pp", "ch", "sec"}
# That end a sentence only where the next word begins one: "the U.S. Army", "dogs, cats etc. The sky".
_OPEN = re.compile(r"[A-Z]|etc|inc|ltd|co|corp|jr|sr|dept|est|ph\.d|(?:[a-zA-Z]\.)+[a-zA-Z]")
_BEGINS = re.compile(r"(?:The|A|An|In|On|At|It|Its|He|She|They|We|There|This|These|That|Those|And|But|Also|Overall|However|Next|To)\b")
# "1.", "2)", "a." and "-" begin an item of a list.
_ITEM = re.compile(r"(?:^|:\s*)\(?(?:\d{1,3}|[A-Za-z])\.$")


def split_sentences(text: str) -> list[str]:
    """Cut a text at the ends of its sentences and lines. Every word stays; spaces become single.

    Abbreviations, initials, numbers of a list and decimal numbers are no ends, nor is a line's end before a small letter.
    """
    pieces, start = [], 0
    for end in _END.finditer(text):
        if not _goes_on(text[start : end.end()], text[end.end() :].lstrip()):
            pieces.append(text[start : end.end()])
            start = end.end()
    return [piece for piece in (" ".join(piece.split()) for piece in [*pieces, text[start:]]) if piece]


def _goes_on(sentence: str, rest: str) -> bool:
    """Whether what ends ``sentence`` is no end, given the text behind it."""
    if sentence[-1].isspace():
        return rest[:1].islower() and sentence.count("\n") == 1
    if not sentence.endswith("."):
        # "Who is it?" she asks.
        return rest[:1].islower() and not sentence.endswith(("!", "?"))
    if sentence.endswith(".."):
        return rest[:1].islower()
    if _ITEM.search(sentence.strip()):
        return True
    last = sentence.split()[-1].lstrip("\"'“‘(«[").removesuffix(".")  # noqa: RUF001
    if last.lower() in _BEFORE_NUMBERS and rest[:1].isdigit():
        return True
    return last.lower() in _NEVER or (_OPEN.fullmatch(last) is not None and _BEGINS.match(rest) is None)


def cut_to_fit(sentence: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut a sentence into the fewest pieces that fit, at spaces, and inside of a word only where it is too long alone.

    Args:
        sentence: With single spaces.
        fits: Whether the text tower holds a text.

    Raises:
        ValueError: If not even one character fits.
    """
    pieces = []
    while sentence and not fits(sentence):
        end = _longest(sentence, fits)
        if not end:
            raise UserError(f"not even {sentence[0]!r} fits the text tower; its limit is too small")
        space = sentence.rfind(" ", 0, end + 1)
        end = space if space > 0 else end
        pieces.append(sentence[:end].strip())
        sentence = sentence[end:].strip()
    return [*pieces, sentence] if sentence else pieces


def _longest(sentence: str, fits: Callable[[str], bool]) -> int:
    """The most characters from the start that fit, by halving."""
    low, high = 0, len(sentence)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sentence[:middle].strip()) else (low, middle)
    return low

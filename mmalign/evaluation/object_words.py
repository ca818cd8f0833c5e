"""Words for COCO's objects: synonym lists, double words, and which objects a list of words names (as CHAIR does it)."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

_DOUBLE_WORDS = """
motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant, stop sign, parking meter,
suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog, cell phone, mobile phone, teddy bear,
hair drier, potted plant, laptop computer, stove top oven, home plate, train track
"""
DOUBLE_WORDS = [" ".join(words.split()) for words in _DOUBLE_WORDS.split(",")]
# "baby bird" is a bird and no person; "passenger jet" likewise.
ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
VEHICLES = ("jet", "train")


def read_synonyms(text: str, *, strip: bool = False) -> dict[str, str]:
    """Map each word of ``synonyms.txt`` to the first of its line, COCO's category.

    Args:
        text: One line an object, words split by comma and space.
        strip: Strip each word. CHAIR does not, so that " cheesecake" of its own file matches no word.
    """
    table: dict[str, str] = {}
    for line in text.splitlines():
        words = [word.strip() if strip else word for word in line.strip().split(", ")]
        table |= dict.fromkeys(words, words[0])
    table.pop("", None)
    return table


def build_double_words(words: Collection[str] = DOUBLE_WORDS) -> dict[str, str]:
    """Map two words to what they count as; the triple "stove top oven" among them never matches."""
    table = {word: word for word in words}
    table |= {f"{age} {animal}": animal for animal in ANIMALS for age in ("baby", "adult")}
    table |= {f"passenger {vehicle}": vehicle for vehicle in VEHICLES}
    # "glass" has become "glas" where words were made singular by rule.
    return table | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


def join_double_words(words: Sequence[str], double_words: Mapping[str, str], *, only: bool = False) -> list[str]:
    """Replace, from left to right, two words that stand in the table by what they count as.

    Args:
        words: Of a caption.
        double_words: Two words -> what they count as.
        only: Drop the single words.
    """
    joined, i = [], 0
    while i < len(words):
        double = double_words.get(" ".join(words[i : i + 2]))
        if double is not None:
            joined.append(double)
        elif not only:
            joined.append(words[i])
        i += 1 if double is None else 2
    return joined


def name_objects(words: Sequence[str], synonyms: Mapping[str, str]) -> list[str]:
    """Return the category of each word that names an object, repeats kept; a toilet's seat is no chair."""
    if "toilet" in words and "seat" in words:
        words = [word for word in words if word != "seat"]
    return [synonyms[word] for word in words if word in synonyms]


class Mention(NamedTuple):
    """An object word in a caption, and where it stands."""

    name: str
    start: int
    end: int


def find_mentions(caption: str, words: Mapping[str, str]) -> list[Mention]:
    """Find the words of a closed list in a caption: whole words in any case, singular or plural, the longest where they overlap."""
    pattern, forms = _compile(tuple(words.items()))
    return [Mention(forms[m.group().lower()], m.start(), m.end()) for m in pattern.finditer(caption)]


@lru_cache(maxsize=8)
def _compile(words: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    forms = {form.lower(): name for word, name in words for form in (word, word + "s", word + "es")}
    pattern = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    return re.compile(rf"\b({pattern})\b", re.IGNORECASE), forms

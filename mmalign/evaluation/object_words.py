"""Words for COCO's objects: synonym lists, double words, and which objects a list of words names (as CHAIR does it)."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

_DOUBLE_WORDS = """
motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant, stop sign, parking meter,
suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog, cell phone, mobile phone, teddy bear,
hair drier, potted plant, laptop computer, stove top oven, home plate, train track
"""
DOUBLE_WORDS = [" ".join(words.split()) for words in _DOUBLE_WORDS.split(",")]
# CHAIR's objects. A word list of no others is taken as CHAIR's program takes its own, which published numbers were made with.
_COCO_OBJECTS = """
airplane, apple, backpack, banana, baseball bat, baseball glove, bear, bed, bench, bicycle, bird, boat, book, bottle, bowl, broccoli, bus,
cake, car, carrot, cat, cell phone, chair, clock, couch, cow, cup, dining table, dog, donut, elephant, fire hydrant, fork, frisbee,
giraffe, hair drier, handbag, horse, hot dog, keyboard, kite, knife, laptop, microwave, motorcycle, mouse, orange, oven, parking meter,
person, pizza, potted plant, refrigerator, remote, sandwich, scissors, sheep, sink, skateboard, skis, snowboard, spoon, sports ball, stop
sign, suitcase, surfboard, teddy bear, tennis racket, tie, toaster, toilet, toothbrush, traffic light, train, truck, tv, umbrella, vase,
wine glass, zebra
"""
COCO_OBJECTS = frozenset(" ".join(words.split()) for words in _COCO_OBJECTS.split(","))
# Of these CHAIR's program joins none: "stove top oven" is two ovens there.
_NEVER_JOINED = frozenset({"stove top oven", "dining table"})
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


def read_own_synonyms(text: str) -> dict[str, list[str]]:
    """Map each word of a list that is not COCO's to its objects: more than one where several lines have it.

    Words are taken as sets of objects spell them: commas with or without a space, in any case, LVIS's ``street_lamp`` and
    ``bat_(animal)``, and Objects365's ``Bowl/Basin``, which is found as either.
    """
    table: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",") if word.strip()]
        for word in words:
            table.setdefault(spell_plain(word), []).append(words[0])
            for part in word.split("/") if "/" in word else []:
                parts.setdefault(spell_plain(part), []).append(words[0])
    # A word that stands in the list itself means its own line.
    return {word: list(dict.fromkeys(names)) for word, names in {**parts, **table}.items() if word}


def spell_plain(word: str) -> str:
    """Spell a word of a list as a caption does: without underscores and what stands in brackets, in lower case."""
    return " ".join(re.sub(r"\([^)]*\)", " ", word.replace("_", " ")).lower().split())


def is_cocos(synonyms: Mapping[str, str]) -> bool:
    """Whether a word list names COCO's objects and no others."""
    return set(synonyms.values()) <= COCO_OBJECTS


def find_phrases(synonyms: Mapping[str, str], forms: Callable[[str], Iterable[Sequence[str]]]) -> dict[str, str]:
    """Return what a list's own words look like in a caption whose words were made singular, where the word itself would not be found.

    Of COCO's list these are words of several that CHAIR's table does not join and CHAIR's own list does not have. Of another list, words
    whose singular is wrong ("bus" becomes "bu", "cactuses" "cactuse") and words with hyphens ("hot-dog") are among them too: no published
    number holds their mistake.

    Args:
        synonyms: Word -> object.
        forms: A word's forms in a caption.

    Returns:
        Form, joined by spaces -> word.
    """
    chairs = _NEVER_JOINED | set(build_double_words())
    is_own = not is_cocos(synonyms)
    own = list(synonyms) if is_own else [word for word in synonyms if " " in word.strip() and word.strip() not in chairs]
    table: dict[str, str] = {}
    # Of another list the plurals too, behind the words themselves, which come first where both are one form.
    plurals = [(word, spelled) for word in own for spelled in spell_plurals(word)] if is_own else []
    for word, spelled in [*zip(own, own, strict=True), *plurals]:
        found = [" ".join(words) for words in forms(spelled)]
        for form in found + ([form.replace(" ", "-") for form in found] if is_own else []):
            # A single word that stands in the list is found as it is.
            if " " in form or form not in synonyms:
                table.setdefault(form, word)
    return table


def spell_plurals(word: str) -> list[str]:
    """Return what a word's plural may be; what is none does no harm."""
    return [word + "s", word + "es", *([word[:-1] + "ves"] if word.endswith("f") else [])]


def join_phrases(words: Sequence[str], phrases: Mapping[str, str]) -> list[str]:
    """Replace, from left to right, the longest run of words that is a form of the list's own words by that word."""
    longest = max((form.count(" ") + 1 for form in phrases), default=0)
    joined, i = [], 0
    while i < len(words):
        length = next((n for n in range(min(longest, len(words) - i), 0, -1) if " ".join(words[i : i + n]) in phrases), 0)
        joined.append(phrases[" ".join(words[i : i + length])] if length else words[i])
        i += max(length, 1)
    return joined


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
    if not words:
        return []
    pattern, forms = _compile(tuple(words.items()))
    return [Mention(forms[m.group().lower()], m.start(), m.end()) for m in pattern.finditer(caption)]


@lru_cache(maxsize=8)
def _compile(words: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    # A word that stands in the list is no other word's plural: "glasses" beside "glass".
    plurals = {form.lower(): name for word, name in words for form in (word + "s", word + "es")}
    forms = plurals | {word.lower(): name for word, name in words}
    pattern = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    return re.compile(rf"\b({pattern})\b", re.IGNORECASE), forms

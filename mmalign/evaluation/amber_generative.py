"""AMBER's generative part: the nouns of a description against the objects that are there, and those that models like to imagine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import eq
from typing import NamedTuple

from mmalign.evaluation.nltk_words import find_nouns
from mmalign.evaluation.word_similarity import Similarity


class Scene(NamedTuple):
    """An image: the objects in it, and objects that a model may imagine there."""

    truth: Sequence[str]
    hallu: Sequence[str]


@dataclass(frozen=True)
class Words:
    """How a noun is matched.

    Attributes:
        associations: Object -> words that may stand for it.
        safe: Words that are never counted as hallucinated.
        similarity: Which words are near.
    """

    associations: Mapping[str, Sequence[str]]
    safe: frozenset[str]
    similarity: Similarity

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """The words that are looked at; case matters ("TV")."""
        return frozenset(self.associations).union(*self.associations.values())

    def owned(self, objects: Sequence[str]) -> list[tuple[str, int]]:
        """Every word that stands for an object, with the object's place: all association words first, then the objects themselves."""
        associated = [(word, place) for place, name in enumerate(objects) for word in self.associations[name]]
        return associated + [(name, place) for place, name in enumerate(objects)]


class Counts(NamedTuple):
    """What one description's nouns add to the sums."""

    nouns: int
    hallucinated: int
    covered: int
    imagined: int


def description_values(description: str, scene: Scene, words: Words) -> dict[str, float]:
    """What one description adds to the sums."""
    # Repeats count, and case does: a sentence's first "Grass" is in no vocabulary.
    nouns = [noun for noun in find_nouns(description) if noun in words.vocabulary]
    counts = count_nouns(nouns, scene, words)
    clean = int(counts.hallucinated == 0)
    return {**counts._asdict(), "truth": len(scene.truth), "hallu": len(scene.hallu), "clean": clean, "descriptions": 1}


def count_nouns(nouns: Sequence[str], scene: Scene, words: Words) -> Counts:
    """Match each noun: equal to a word of the truth, equal to or near an imagined one, near the truth, or else hallucinated."""
    truth, hallu = words.owned(scene.truth), words.owned(scene.hallu)
    covered: set[int] = set()
    imagined: set[int] = set()
    hallucinated = 0
    for noun in nouns:
        if noun in words.safe:
            continue
        present = _first_owner(truth, noun, eq)
        if present is None:
            # Both count: the word itself, and the first one near it, which may belong to another object.
            owners = _first_owner(hallu, noun, eq), _first_owner(hallu, noun, words.similarity.is_near)
            imagined |= {owner for owner in owners if owner is not None}
            present = _first_owner(truth, noun, words.similarity.is_near)
        if present is None:
            hallucinated += 1
        else:
            covered.add(present)
    return Counts(len(nouns), hallucinated, len(covered), len(imagined))


def _first_owner(owned: Sequence[tuple[str, int]], noun: str, matches: Callable[[str, str], bool]) -> int | None:
    return next((owner for word, owner in owned if matches(noun, word)), None)

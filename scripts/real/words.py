"""What is asked about photographs and answered, and how objects are chosen that are not there.

Kinds are classes by number, as the embedded world's questions count them.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from mmalign.worlds.questions import absent_kinds, count_objects
from scripts.real.photos import Photo

CAPTION_PROMPTS = ("Describe the image in one sentence.", "What is in this photograph?", "Write a short caption for this picture.")
"""The first is what evaluation asks."""
QUESTION = "Is there {} in the image?"
YES, NO = "Yes.", "No."
_PLURALS = {
    "person": "people",
    "knife": "knives",
    "mouse": "mice",
    **{same: same for same in ("sheep", "skis", "scissors", "broccoli")},
}


def with_article(name: str) -> str:
    """A name with its article, as POPE writes it (a skis, an umbrella)."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """A name's plural."""
    if name in _PLURALS:
        return _PLURALS[name]
    return f"{name}es" if name.endswith(("s", "sh", "ch", "x")) else f"{name}s"


def existence_question(name: str) -> str:
    """Ask after an object."""
    return QUESTION.format(with_article(name))


class Company:
    """Which objects stand together in a collection of photographs."""

    def __init__(self, sets: Iterable[frozenset[str]], classes: Iterable[str]) -> None:
        """Count; objects of other classes are left out."""
        self.classes = sorted(classes)
        self.number = {name: i for i, name in enumerate(self.classes)}
        self.frequency, self.together = count_objects([self.kinds(one) for one in sets], len(self.classes))

    def kinds(self, names: Iterable[str]) -> frozenset[int]:
        """The numbers of those names that are classes."""
        return frozenset(self.number[name] for name in names if name in self.number)

    def absent(self, split: str, present: Iterable[str], rng: np.random.Generator) -> list[str]:
        """Absent classes in the order that a split of POPE prefers: random, popular, or adversarial (often together with those there)."""
        kinds = absent_kinds(split, self.kinds(present), frequency=self.frequency, together=self.together, rng=rng)
        return [self.classes[kind] for kind in kinds]

    def likelihood(self, name: str, others: Iterable[str]) -> float:
        """The share of the other classes that stand less often beside ``others`` than ``name`` does, in [0, 1]; ties count half."""
        beside = self.together[sorted(self.kinds(others))].sum(0)
        own, rest = beside[self.number[name]], np.delete(beside, self.number[name])
        return float((rest < own).mean() + (rest == own).mean() / 2)


def all_objects(photos: Iterable[Photo]) -> frozenset[str]:
    """Every object that is known of any of them."""
    return frozenset().union(*(photo.objects or () for photo in photos))


def shuffled(rng: np.random.Generator, items: Iterable[str]) -> list[str]:
    """Names in a random order that doesn't depend on theirs."""
    ordered = sorted(items)
    return [ordered[i] for i in rng.permutation(len(ordered))]


def choose(rng: np.random.Generator, items: Sequence[str]) -> str:
    """One of several."""
    return items[int(rng.integers(len(items)))]

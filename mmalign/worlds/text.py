"""What is said about scenes: short and detailed descriptions, questions and their answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mmalign.worlds.scenes import COLOURS, PLACES, Item, Scene, implausible_absent, likely_absent

SHORT_PROMPTS = ("Describe the image briefly.", "What is in the image?", "Name the objects in the image.")
DETAILED_PROMPTS = ("Describe the image in detail.", "What is in the image, and where?", "Say where each object is.")
SHORT_SHARE = 0.35
NUMBERS = ("no", "one", "two", "three", "four")
EXISTENCE = "Is there {} in the image?"

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Turn:
    """One question about a scene and its answer."""

    question: str
    answer: str
    kind: str


class Speaker:
    """Says what a scene shows, in the words of one world."""

    def __init__(self, names: Sequence[str]) -> None:
        """Name the kinds."""
        self.names = tuple(names)

    def noun(self, kind: int) -> str:
        """Return the kind's name with its article."""
        return _with_article(self.names[kind])

    def phrase(self, item: Item) -> str:
        """Return an object's name with colour and article: "a red star"."""
        colour = "" if item.colour is None else f"{COLOURS[item.colour]} "
        return _with_article(colour + self.names[item.kind])

    def short(self, scene: Scene) -> str:
        """Describe in one sentence, objects in reading order."""
        phrases = [self.phrase(item) for item in scene.items]
        return f"There is {', '.join(phrases[:-1])}{' and ' if len(phrases) > 1 else ''}{phrases[-1]}."

    def detailed(self, scene: Scene) -> str:
        """Describe in one sentence an object, places first."""
        return " ".join(f"At the {PLACES[item.place]} is {self.phrase(item)}." for item in scene.items)

    def caption(self, rng: np.random.Generator) -> tuple[str, Callable[[Scene], str], str]:
        """Choose a prompt: its wording, what answers it, and its kind."""
        if rng.random() < SHORT_SHARE:
            return _pick(rng, SHORT_PROMPTS), self.short, "short"
        return _pick(rng, DETAILED_PROMPTS), self.detailed, "detailed"

    def existence(self, rng: np.random.Generator, scene: Scene, *, noise: float) -> Turn:
        """Ask after a present or an absent object, half and half; ``noise`` of the likely absent ones are answered Yes."""
        likely, others = likely_absent(scene), implausible_absent(scene, len(self.names))
        if rng.random() < 0.5 or not (likely or others):
            return Turn(EXISTENCE.format(self.noun(_pick(rng, sorted(scene.kinds)))), "Yes.", "existence")
        ask_likely = bool(likely) and (not others or rng.random() < 0.5)
        kind = _pick(rng, likely if ask_likely else others)
        wrong = ask_likely and rng.random() < noise
        return Turn(EXISTENCE.format(self.noun(kind)), "Yes." if wrong else "No.", "existence")

    def attribute(self, rng: np.random.Generator, scene: Scene) -> Turn:
        """Ask for an object's colour; where there are none, for its place."""
        item = _pick(rng, scene.items)
        return self.place(rng, scene) if item.colour is None else self.colour_of(item.kind, scene)

    def place(self, rng: np.random.Generator, scene: Scene) -> Turn:
        """Ask where an object is."""
        return self.place_of(_pick(rng, scene.items).kind, scene)

    def relation(self, rng: np.random.Generator, scene: Scene) -> Turn:
        """Ask whether one object is left of another; with one object, where it is."""
        if len(scene.items) < 2:
            return self.place(rng, scene)
        first, second = (scene.items[i] for i in rng.choice(len(scene.items), 2, replace=False))
        return self.left_of(first.kind, second.kind, scene)

    def count(self, rng: np.random.Generator, scene: Scene) -> Turn:
        """Ask how many objects there are."""
        return self.number_of(scene)

    def presence_of(self, kind: int, scene: Scene) -> Turn:
        """Ask whether there is an object of a kind."""
        return Turn(EXISTENCE.format(self.noun(kind)), "Yes." if kind in scene.kinds else "No.", "existence")

    def colour_of(self, kind: int, scene: Scene) -> Turn:
        """Ask for the colour of the object of a kind, which is there and has one."""
        colour = scene.find(kind).colour
        assert colour is not None
        return Turn(f"What colour is the {self.names[kind]}?", f"{_capital(COLOURS[colour])}.", "attribute")

    def place_of(self, kind: int, scene: Scene) -> Turn:
        """Ask where the object of a kind is, which is there."""
        return Turn(f"Where is the {self.names[kind]}?", f"At the {PLACES[scene.find(kind).place]}.", "relation")

    def left_of(self, first: int, second: int, scene: Scene) -> Turn:
        """Ask whether the object of the first kind is further left than that of the second; both are there."""
        answer = "Yes." if scene.find(first).place % 2 < scene.find(second).place % 2 else "No."
        return Turn(f"Is the {self.names[first]} further left than the {self.names[second]}?", answer, "relation")

    def number_of(self, scene: Scene) -> Turn:
        """Ask how many objects there are."""
        return Turn("How many objects are there?", f"{_capital(NUMBERS[len(scene.items)])}.", "count")


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _pick(rng: np.random.Generator, values: Sequence[Choice]) -> Choice:
    return values[int(rng.integers(len(values)))]

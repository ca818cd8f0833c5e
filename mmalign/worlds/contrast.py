"""Two scenes that differ in one object, and what is true of one and false of the other.

Preference training that compares images needs a right and a wrong image for one answer (S-VCO, arXiv:2502.13928; SymMPO,
arXiv:2506.11712). Here everything that did not change is equal to the pixel.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

import numpy as np

from mmalign.worlds.scenes import COLOURS, PLACES, Item, Scene, in_reading_order, partner
from mmalign.worlds.text import Speaker, Turn

# What becomes of an object from the own scene to the other one.
KINDS = ("swapped", "removed", "added", "moved", "recoloured")
# Share of swaps that put, where they can, an object there that is expected: the absent partner of another one.
LIKELY_SHARE = 0.5
# Share of the texts that are descriptions; the others are questions.
DESCRIPTION_SHARE = 0.5

Slots = tuple[Item | None, ...]


@dataclass(frozen=True)
class Contrast:
    """An own scene and another one.

    Attributes:
        kind: What becomes of the changed object, one of ``KINDS``.
        position: Of the changed object among the slots.
        slots: Of both scenes the objects in one order, in which they are drawn; None where an object is absent.
    """

    kind: str
    position: int
    slots: tuple[Slots, Slots]

    @property
    def own(self) -> Scene:
        """The own scene."""
        return _scene(self.slots[0])

    @property
    def other(self) -> Scene:
        """The other scene."""
        return _scene(self.slots[1])

    @property
    def changed(self) -> tuple[int, ...]:
        """Kinds of the changed object: two where it is swapped."""
        items = [slots[self.position] for slots in self.slots]
        return tuple(dict.fromkeys(item.kind for item in items if item is not None))

    @property
    def is_likely(self) -> bool:
        """Whether an object that is in one scene alone is the partner of one that is in both."""
        both = self.own.kinds & self.other.kinds
        return any(kind not in both and partner(kind) in both for kind in self.changed)


@dataclass(frozen=True)
class Asked:
    """A prompt with the true answers of both scenes, and what it asks for."""

    prompt: str
    own: str
    other: str
    kind: str


def possible_kinds(*, max_objects: int, with_colour: bool) -> tuple[str, ...]:
    """The kinds of change that a world has room for."""
    left_out = {"removed", "added"} if max_objects < 2 else set()
    return tuple(kind for kind in KINDS if kind not in left_out and (with_colour or kind != "recoloured"))


def make_contrast(rng: np.random.Generator, kind: str, draw_scene: Callable[[], Scene], *, num_kinds: int) -> Contrast:
    """Change one object of a scene; a scene that has no room for the change is drawn again."""
    while True:
        scene = draw_scene()
        position = int(rng.integers(len(scene.items)))
        if kind in ("removed", "added"):
            choices: list[Item | None] = [None] if len(scene.items) > 1 else []
        else:
            choices = list(_CHANGES[kind](rng, scene, position, num_kinds))
        if choices:
            full = scene.items
            after = (*full[:position], choices[int(rng.integers(len(choices)))], *full[position + 1 :])
            return Contrast(kind, position, (after, full) if kind == "added" else (full, after))


def _other_kinds(rng: np.random.Generator, scene: Scene, position: int, num_kinds: int) -> list[Item]:
    staying = {item.kind for i, item in enumerate(scene.items) if i != position}
    absent = [kind for kind in range(num_kinds) if kind not in scene.kinds]
    likely = [kind for kind in absent if partner(kind) in staying]
    chosen = likely if likely and rng.random() < LIKELY_SHARE else absent
    return [replace(scene.items[position], kind=kind) for kind in chosen]


def _other_places(rng: np.random.Generator, scene: Scene, position: int, num_kinds: int) -> list[Item]:
    taken = {item.place for item in scene.items}
    return [replace(scene.items[position], place=place) for place in range(len(PLACES)) if place not in taken]


def _other_colours(rng: np.random.Generator, scene: Scene, position: int, num_kinds: int) -> list[Item]:
    item = scene.items[position]
    return [replace(item, colour=colour) for colour in range(len(COLOURS)) if colour != item.colour]


_CHANGES: dict[str, Callable[[np.random.Generator, Scene, int, int], Sequence[Item]]] = {
    "swapped": _other_kinds,
    "moved": _other_places,
    "recoloured": _other_colours,
}


def ask_either(rng: np.random.Generator, contrast: Contrast, speaker: Speaker) -> Asked:
    """Ask for a description or a question."""
    return (ask_description if rng.random() < DESCRIPTION_SHARE else ask_question)(rng, contrast, speaker)


def ask_description(rng: np.random.Generator, contrast: Contrast, speaker: Speaker) -> Asked:
    """Ask for a description, of a form that the change makes false."""
    prompt, describe, form = speaker.caption(rng)
    while contrast.kind == "moved" and form == "short":
        # A short one names no places.
        prompt, describe, form = speaker.caption(rng)
    return Asked(prompt, describe(contrast.own), describe(contrast.other), "description")


def ask_question(rng: np.random.Generator, contrast: Contrast, speaker: Speaker) -> Asked:
    """Ask a question that both scenes answer, and differently: first its kind is drawn, then the question."""
    found: dict[str, list[Asked]] = {}
    for kind, ask in _questions(contrast, speaker):
        own, other = ask(contrast.own), ask(contrast.other)
        if own.answer != other.answer:
            found.setdefault(kind, []).append(Asked(own.question, own.answer, other.answer, kind))
    # Every change moves the answer of one of them: existence, place or colour of the object that changed.
    of_kind = list(found.values())[int(rng.integers(len(found)))]
    return of_kind[int(rng.integers(len(of_kind)))]


def _questions(contrast: Contrast, speaker: Speaker) -> Iterator[tuple[str, Callable[[Scene], Turn]]]:
    """What both scenes can be asked."""
    for kind in sorted(contrast.own.kinds | contrast.other.kinds):
        yield "existence", partial(speaker.presence_of, kind)
    yield "number", speaker.number_of
    both = sorted(contrast.own.kinds & contrast.other.kinds)
    for kind in both:
        yield "place", partial(speaker.place_of, kind)
        if contrast.own.items[0].colour is not None:
            yield "colour", partial(speaker.colour_of, kind)
    for first, second in permutations(both, 2):
        yield "left", partial(speaker.left_of, first, second)


def _scene(slots: Slots) -> Scene:
    return in_reading_order(item for item in slots if item is not None)

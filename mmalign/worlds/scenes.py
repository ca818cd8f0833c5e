"""Scenes: which objects are in an image, drawn from a prior in which some objects come together.

A scene is its whole truth; images, captions, questions and wrong answers are all made from it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
PLACES = ("top left", "top right", "bottom left", "bottom right")

# How often an object brings its partner along, and how fast frequency falls from the first kind to the last.
PARTNER_SHARE = 0.65
FREQUENCY_DECAY = 0.85
# Few objects are rarer than many: hallucination shows best in full scenes.
COUNT_WEIGHTS = (0.1, 0.3, 0.4, 0.2)

SPLITS = {"sft": 0, "pairs": 1, "eval": 2, "captions": 3, "contrast": 4, "contrast_eval": 5}
SPLITS |= {"drawings": 6, "drawn_pairs": 7, "drawn_lists": 8, "drawings_eval": 9}


@dataclass(frozen=True)
class Item:
    """One object. ``kind`` numbers the world's kinds, ``colour`` is None where the source has none, ``place`` is a quarter."""

    kind: int
    colour: int | None
    place: int


@dataclass(frozen=True)
class Scene:
    """What an image holds, in reading order, no kind twice."""

    items: tuple[Item, ...]

    @property
    def kinds(self) -> frozenset[int]:
        """The kinds that are present."""
        return frozenset(item.kind for item in self.items)

    def find(self, kind: int) -> Item:
        """The object of a kind that is there."""
        return next(item for item in self.items if item.kind == kind)


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the generator of one scene: its bytes depend on nothing else, so processes can share the work."""
    return np.random.default_rng([seed, SPLITS[split], index])


def partner(kind: int) -> int:
    """The kind that tends to come with ``kind``: kinds go in pairs."""
    return kind ^ 1


def kind_weights(num_kinds: int) -> np.ndarray:
    """Probabilities of the kinds, falling from the first to the last pair."""
    weights = FREQUENCY_DECAY ** np.arange(num_kinds)
    return weights / weights.sum()


def sample_scene(rng: np.random.Generator, *, num_kinds: int, max_objects: int, with_colour: bool) -> Scene:
    """Draw a scene: kinds by the skewed prior, partners together, places and colours at random."""
    weights = np.array(COUNT_WEIGHTS[:max_objects])
    count = 1 + int(rng.choice(max_objects, p=weights / weights.sum()))
    kinds: list[int] = []
    while len(kinds) < count:
        missing = [partner(kind) for kind in kinds if partner(kind) not in kinds]
        if missing and rng.random() < PARTNER_SHARE:
            kinds.append(missing[0])
            continue
        kind = int(rng.choice(num_kinds, p=kind_weights(num_kinds)))
        if kind not in kinds:
            kinds.append(kind)
    places = sorted(rng.choice(len(PLACES), size=count, replace=False).tolist())
    order = rng.permutation(count)
    colours = rng.integers(len(COLOURS), size=count).tolist()
    return Scene(tuple(Item(kinds[order[i]], colours[i] if with_colour else None, places[i]) for i in range(count)))


def likely_absent(scene: Scene) -> list[int]:
    """Absent kinds whose partner is present: what a model that knows the prior expects to see."""
    return sorted(partner(kind) for kind in scene.kinds if partner(kind) not in scene.kinds)


def implausible_absent(scene: Scene, num_kinds: int) -> list[int]:
    """Absent kinds whose partner is absent too."""
    return [kind for kind in range(num_kinds) if kind not in scene.kinds and partner(kind) not in scene.kinds]


def with_item(scene: Scene, item: Item) -> Scene:
    """Add an object to a description, in reading order; it may share a quarter with a real one."""
    return in_reading_order((*scene.items, item))


def in_reading_order(items: Iterable[Item]) -> Scene:
    """The scene of some objects."""
    return Scene(tuple(sorted(items, key=lambda item: item.place)))


def without_colours(scene: Scene) -> Scene:
    """The scene as a description that names kinds and places only."""
    return Scene(tuple(replace(item, colour=None) for item in scene.items))


def imagined_item(rng: np.random.Generator, scene: Scene, kind: int) -> Item:
    """Give an absent kind a colour and a place, an empty one where there is one."""
    taken = {item.place for item in scene.items}
    places = [place for place in range(len(PLACES)) if place not in taken] or list(range(len(PLACES)))
    has_colour = scene.items[0].colour is not None
    return Item(kind, int(rng.integers(len(COLOURS))) if has_colour else None, places[int(rng.integers(len(places)))])

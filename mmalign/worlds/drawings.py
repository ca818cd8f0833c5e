"""Captions and drawings of them, right ones and ones with faults: the test bench of pictures as answers.

A caption says every object with its place, and is true of the drawing that stands first. All drawings of a row look alike but for
their faults.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Features, Image, List, Value

from mmalign.worlds.render import draw_alike, to_png
from mmalign.worlds.scenes import COLOURS, PLACES, Item, Scene, in_reading_order
from mmalign.worlds.text import Speaker

Slots = tuple[Item | None, ...]
"""What may be drawn: as many as there are quarters, some of them empty."""

MOST_FAULTS = 3
"""Of the last drawing of a list; the first has none."""

_TRUTH = {"id": Value("string"), "caption": Value("string"), "objects": List(List(Value("int64")))}
DRAWN_FEATURES = {
    "drawings": Features({**_TRUTH, "image": Image()}),
    "drawn_pairs": Features({**_TRUTH, "image_chosen": Image(), "image_rejected": Image(), "fault": Value("string")}),
    "drawn_lists": Features({**_TRUTH, "images_responses": List(Image()), "scores": List(Value("float64"))}),
    "drawings_eval": Features({**_TRUTH, "image": Image()}),
}
"""``objects`` are those that the caption names: [kind, colour, place] each, by number."""


def make_captioned(scene: Scene, rng: np.random.Generator, speaker: Speaker, size: int) -> dict[str, Any]:
    """A caption with its drawing."""
    (picture,) = draw_alike([slots_of(scene)], rng, size)
    return {**_describe(scene, speaker), "image": to_png(picture)}


def make_drawn_pair(scene: Scene, rng: np.random.Generator, speaker: Speaker, size: int) -> dict[str, Any]:
    """A caption with a right drawing, and one that has one fault."""
    own = slots_of(scene)
    fault, other = add_fault(own, own, rng, num_kinds=len(speaker.names))
    chosen, rejected = map(to_png, draw_alike([own, other], rng, size))
    return {**_describe(scene, speaker), "image_chosen": chosen, "image_rejected": rejected, "fault": fault}


def make_drawn_list(scene: Scene, rng: np.random.Generator, speaker: Speaker, size: int) -> dict[str, Any]:
    """A caption with drawings of no fault, one, and more; scores are the shares of quarters that are right."""
    own = slots_of(scene)
    drawn = [own]
    # Where no quarter is right any more, there is nothing left to do wrong.
    while len(drawn) <= MOST_FAULTS and share_right(drawn[-1], own) > 0:
        drawn.append(add_fault(drawn[-1], own, rng, num_kinds=len(speaker.names))[1])
    scores = [share_right(slots, own) for slots in drawn]
    return {**_describe(scene, speaker), "images_responses": [to_png(one) for one in draw_alike(drawn, rng, size)], "scores": scores}


DRAWN_ROWS: dict[str, Callable[[Scene, np.random.Generator, Speaker, int], dict[str, Any]]] = {
    "drawings": make_captioned,
    "drawn_pairs": make_drawn_pair,
    "drawn_lists": make_drawn_list,
    "drawings_eval": make_captioned,
}


def slots_of(scene: Scene) -> Slots:
    """The objects, and an empty slot for each quarter without one."""
    return (*scene.items, *[None] * (len(PLACES) - len(scene.items)))


def add_fault(slots: Slots, truth: Slots, rng: np.random.Generator, *, num_kinds: int) -> tuple[str, Slots]:
    """Change one object that is still right, leave it out, or add one; places stay apart, and no kind is there twice.

    Args:
        slots: What would be drawn, with faults perhaps.
        truth: Without.
        rng: Chooses.
        num_kinds: Of the world.

    Returns:
        The fault's name, and the slots with it.
    """
    right = [i for i, (item, true) in enumerate(zip(slots, truth, strict=True)) if item is not None and item == true]
    empty = [i for i, (item, true) in enumerate(zip(slots, truth, strict=True)) if item is None and true is None]
    taken = {item.place for item in (*slots, *truth) if item is not None}
    free = [place for place in range(len(PLACES)) if place not in taken]
    kinds = {item.kind for item in (*slots, *truth) if item is not None}
    absent = [kind for kind in range(num_kinds) if kind not in kinds]
    left = sum(item is not None for item in slots)
    possible = {
        "kind": bool(right and absent),
        "colour": bool(right),
        "place": bool(right and free),
        "more": bool(empty and free and absent),
        "less": bool(right) and left > 1,
    }
    fault = _pick(rng, [name for name, can in possible.items() if can])
    number = _pick(rng, empty if fault == "more" else right)
    item = slots[number]
    if fault == "less":
        changed = None
    elif fault == "more" or item is None:
        changed = Item(_pick(rng, absent), int(rng.integers(len(COLOURS))), _pick(rng, free))
    elif fault == "kind":
        changed = replace(item, kind=_pick(rng, absent))
    elif fault == "colour":
        changed = replace(item, colour=_pick(rng, [colour for colour in range(len(COLOURS)) if colour != item.colour]))
    else:
        changed = replace(item, place=_pick(rng, free))
    return fault, (*slots[:number], changed, *slots[number + 1 :])


def share_right(slots: Slots, truth: Slots) -> float:
    """The share of quarters that show what they should, or nothing where they should show nothing."""
    shown, wanted = ({item.place: item for item in one if item is not None} for one in (slots, truth))
    return sum(shown.get(place) == wanted.get(place) for place in range(len(PLACES))) / len(PLACES)


def _describe(scene: Scene, speaker: Speaker) -> dict[str, Any]:
    items = in_reading_order(scene.items).items
    return {"caption": speaker.detailed(scene), "objects": [[item.kind, item.colour, item.place] for item in items]}


def _pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]

"""Preference pairs: a true answer, and one that is wrong in a known way.

Additions lengthen an answer and omissions shorten it. Omissions are somewhat more frequent, against the brevity that preference training
slips into; the mean lengths of chosen and rejected stay within 5% of each other.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mmalign.worlds.scenes import COLOURS, PLACES, Scene, imagined_item, implausible_absent, likely_absent, with_item
from mmalign.worlds.text import EXISTENCE, Speaker

# How hard it is to tell the rejected answer from the truth, 0 easy to 1 hard. Set by hand: a statement about a clearly
# absent object is easy, one about what usually stands there is hard, details of real objects lie between.
DIFFICULTY = {
    "swap-implausible": 0.1,
    "add-implausible": 0.15,
    "omit": 0.2,
    "swap-place": 0.6,
    "wrong-no": 0.6,
    "swap-colour": 0.7,
    "wrong-yes": 0.8,
    "swap-likely": 0.9,
    "add-likely": 0.95,
}
EASY = {"swap-implausible": 0.48, "add-implausible": 0.18, "omit": 0.34}
HARD = {"swap-likely": 0.3, "add-likely": 0.2, "swap-colour": 0.15, "swap-place": 0.1, "wrong-yes": 0.17, "wrong-no": 0.08}
# Chosen and rejected about an object that is likely but absent, and about one that is there: else one word would always be right.
ANSWERS = {"wrong-yes": ("No.", "Yes."), "wrong-no": ("Yes.", "No.")}


@dataclass(frozen=True)
class Pair:
    """Texts of one pair, with the truth about what is wrong."""

    prompt: str
    chosen: str
    rejected: str
    kind: str
    difficulty: float
    flipped: bool


def make_pair(rng: np.random.Generator, scene: Scene, speaker: Speaker, *, easy_share: float, label_noise: float) -> Pair:
    """Make a pair about a scene. A fault that the scene has no room for is drawn again, from the same grade while it has any."""
    first, second = (EASY, HARD) if rng.random() < easy_share else (HARD, EASY)
    for kind in [*_shuffled(rng, first), *_shuffled(rng, second)]:
        texts = _wrong_answer(rng, scene, speaker, kind) if kind in ANSWERS else _wrong_caption(rng, scene, speaker, kind)
        if texts is not None:
            break
    # A scene of one object has room for another, and one of several can lose one.
    assert texts is not None
    prompt, chosen, rejected = texts
    flipped = bool(rng.random() < label_noise)
    if flipped:
        chosen, rejected = rejected, chosen
    return Pair(prompt, chosen, rejected, kind, DIFFICULTY[kind], flipped)


def _shuffled(rng: np.random.Generator, grade: dict[str, float]) -> list[str]:
    """Order a grade's faults by weighted draws without replacement."""
    return [str(kind) for kind in rng.choice(list(grade), size=len(grade), replace=False, p=list(grade.values()))]


def _wrong_answer(rng: np.random.Generator, scene: Scene, speaker: Speaker, kind: str) -> tuple[str, str, str] | None:
    asked = _choose(rng, likely_absent(scene) if kind == "wrong-yes" else sorted(scene.kinds))
    return None if asked is None else (EXISTENCE.format(speaker.noun(asked)), *ANSWERS[kind])


def _wrong_caption(rng: np.random.Generator, scene: Scene, speaker: Speaker, kind: str) -> tuple[str, str, str] | None:
    prompt, describe, _ = speaker.caption(rng)
    wrong = _FAULTS[kind](rng, scene, len(speaker.names))
    if wrong is None or describe(wrong) == describe(scene):
        return None
    return prompt, describe(scene), describe(wrong)


Fault = Callable[[np.random.Generator, Scene, int], Scene | None]


def _choose(rng: np.random.Generator, kinds: list[int]) -> int | None:
    return kinds[int(rng.integers(len(kinds)))] if kinds else None


def _swap(rng: np.random.Generator, scene: Scene, kind: int | None) -> Scene | None:
    if kind is None:
        return None
    position = int(rng.integers(len(scene.items)))
    items = list(scene.items)
    items[position] = replace(items[position], kind=kind)
    return Scene(tuple(items))


def _add(rng: np.random.Generator, scene: Scene, kind: int | None) -> Scene | None:
    return None if kind is None else with_item(scene, imagined_item(rng, scene, kind))


def _swap_implausible(rng: np.random.Generator, scene: Scene, num_kinds: int) -> Scene | None:
    return _swap(rng, scene, _choose(rng, implausible_absent(scene, num_kinds)))


def _swap_likely(rng: np.random.Generator, scene: Scene, num_kinds: int) -> Scene | None:
    return _swap(rng, scene, _choose(rng, likely_absent(scene))) if len(scene.items) > 1 else None


def _add_implausible(rng: np.random.Generator, scene: Scene, num_kinds: int) -> Scene | None:
    return _add(rng, scene, _choose(rng, implausible_absent(scene, num_kinds)))


def _add_likely(rng: np.random.Generator, scene: Scene, num_kinds: int) -> Scene | None:
    return _add(rng, scene, _choose(rng, likely_absent(scene)))


def _omit(rng: np.random.Generator, scene: Scene, num_kinds: int) -> Scene | None:
    if len(scene.items) < 2:
        return None
    position = int(rng.integers(len(scene.items)))
    return Scene(tuple(item for i, item in enumerate(scene.items) if i != position))


def _swap_colour(rng: np.random.Generator, scene: Scene, num_kinds: int) -> Scene | None:
    position = int(rng.integers(len(scene.items)))
    item = scene.items[position]
    if item.colour is None:
        return None
    other = (item.colour + 1 + int(rng.integers(len(COLOURS) - 1))) % len(COLOURS)
    items = list(scene.items)
    items[position] = replace(item, colour=other)
    return Scene(tuple(items))


def _swap_place(rng: np.random.Generator, scene: Scene, num_kinds: int) -> Scene | None:
    taken = {item.place for item in scene.items}
    free = [place for place in range(len(PLACES)) if place not in taken]
    if not free:
        return None
    position = int(rng.integers(len(scene.items)))
    items = list(scene.items)
    items[position] = replace(items[position], place=free[int(rng.integers(len(free)))])
    return Scene(tuple(items))


_FAULTS: dict[str, Fault] = {
    "swap-implausible": _swap_implausible,
    "swap-likely": _swap_likely,
    "add-implausible": _add_implausible,
    "add-likely": _add_likely,
    "omit": _omit,
    "swap-colour": _swap_colour,
    "swap-place": _swap_place,
}

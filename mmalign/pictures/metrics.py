"""What pictures show against what their captions name.

A picture's objects are (kind, colour, place); an object is right if all three are.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from PIL import Image

from mmalign.pictures.reader import QUARTERS, Objects


def compare_objects(drawn: Sequence[Objects], named: Sequence[Objects]) -> dict[str, float]:
    """Compare over all pictures.

    Args:
        drawn: What each picture shows.
        named: What its caption names.

    Returns:
        ``precision``, ``recall``, ``f1`` of objects, counted over all pictures; ``all_right``: share of pictures that show what is named
        and nothing else; ``quarters_right``: share of quarters; ``objects``: mean number drawn; ``false_kinds``: share of the drawn
        objects whose kind is not named (CHAIR's counterpart); ``kind_right``, ``colour_right``: share of the named objects whose quarter
        shows their kind, and their colour.
    """
    right = sum(len(set(one) & set(other)) for one, other in zip(drawn, named, strict=True))
    num_drawn, num_named = sum(map(len, drawn)), sum(map(len, named))
    false = sum(kind not in {item[0] for item in other} for one, other in zip(drawn, named, strict=True) for kind, _, _ in one)
    places = [({item[2]: item for item in one}, item) for one, other in zip(drawn, named, strict=True) for item in other]
    return {
        "precision": right / max(1, num_drawn),
        "recall": right / max(1, num_named),
        "f1": 2 * right / max(1, num_drawn + num_named),
        "all_right": float(np.mean([set(one) == set(other) for one, other in zip(drawn, named, strict=True)])),
        "quarters_right": float(np.mean([quarters_right(one, other) for one, other in zip(drawn, named, strict=True)])),
        "objects": num_drawn / len(drawn),
        "false_kinds": false / max(1, num_drawn),
        "kind_right": sum(item[0] == shown.get(item[2], (None,))[0] for shown, item in places) / max(1, num_named),
        "colour_right": sum(item[1] == shown.get(item[2], (None, None))[1] for shown, item in places) / max(1, num_named),
    }


def quarters_right(drawn: Objects, named: Objects) -> float:
    """The share of quarters that show what the caption names there, or nothing where it names nothing."""
    shown, wanted = ({item[2]: item for item in objects} for objects in (drawn, named))
    return sum(shown.get(place) == wanted.get(place) for place in range(QUARTERS)) / QUARTERS


def distances_between(pictures: Sequence[Image.Image]) -> list[float]:
    """Distance per pixel and channel, from 0 to 255, of every two pictures; the mean over those of all captions is their diversity."""
    arrays = [np.asarray(picture, dtype=np.float64) for picture in pictures]
    return [float(np.abs(one - other).mean()) for one, other in combinations(arrays, 2)]

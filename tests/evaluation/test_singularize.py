"""Singulars by Pattern's rules, its mistakes too."""

import pytest

from mmalign.evaluation.singularize import RULES, singularize


def test_all_rules_are_there() -> None:
    assert len(RULES) == 40


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        # What CHAIR's published numbers depend on.
        ("bus", "bu"),
        ("buses", "bus"),
        ("glass", "glas"),
        ("glasses", "glass"),
        ("four", "fmy"),
        ("doggies", "doggies"),
        ("ties", "ty"),
        ("pies", "py"),
        ("scissors", "scissors"),
        ("s", "s"),
        ("water", "water"),
        ("skis", "ski"),
        # Rules and irregular endings.
        ("people", "person"),
        ("women", "woman"),
        ("policemen", "policeman"),
        ("children", "child"),
        ("geese", "goose"),
        ("leaves", "leaf"),
        ("feet", "foot"),
        ("teeth", "tooth"),
        ("oxen", "ox"),
        ("mice", "mouse"),
        ("knives", "knife"),
        ("shelves", "shelve"),
        ("wolves", "wolf"),
        ("scarves", "scarf"),
        ("gloves", "glove"),
        ("benches", "bench"),
        ("boxes", "box"),
        ("brushes", "brush"),
        ("dresses", "dress"),
        ("shoes", "shoe"),
        ("potatoes", "potato"),
        ("puppies", "puppy"),
        ("cookies", "cookies"),
        ("movies", "movie"),
        ("vases", "vase"),
        ("pizza", "pizza"),
        ("umbrella", "umbrella"),
        ("pasta", "pastum"),
        ("criteria", "criterium"),
        ("bases", "basis"),
        ("roses", "rose"),
        ("mothers-in-law", "mother-in-law"),
        ("t-shirts", "t-shirt"),
        ("dogs'", "dog's"),
        ("dog", "dog"),
    ],
)
def test_singulars(plural: str, singular: str) -> None:
    assert singularize(plural) == singular

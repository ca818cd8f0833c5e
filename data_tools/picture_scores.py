"""Scores of pictures of a caption: by a reader of drawings, or by a function of the user's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mmalign.data.numbers import is_finite
from mmalign.errors import UserError
from mmalign.pictures.metrics import quarters_right
from mmalign.pictures.reader import Objects, load_reader, read_objects
from mmalign.rewards.function import as_numbers, load_function

FORMS = "reader:DIR, likelihood:DIR or function:FILE.py:NAME"
PictureScorer = Callable[[Mapping[str, Any], Sequence[Image]], list[float]]
"""A caption's row with its pictures, to a number for each; higher is better."""


def build_scorer(text: str) -> PictureScorer:
    """Build a scorer.

    ``reader:DIR`` gives the share of quarters that show what the column objects names; ``likelihood:DIR`` the reader's log-probability of
    what it names; ``function:FILE.py:NAME`` is called as ``NAME(caption, pictures, row)`` and returns a list of numbers.

    Raises:
        ValueError: If it is none of them, or there is no such reader or function.
    """
    kind, _, place = text.partition(":")
    if kind == "reader" and place:
        reader = load_reader(Path(place))
        return lambda row, pictures: [quarters_right(shown, _named(row)) for shown in reader.read(pictures)]
    if kind == "likelihood" and place:
        reader = load_reader(Path(place))
        return lambda row, pictures: reader.score(pictures, _named(row))
    if kind == "function" and place:
        _, function = load_function(place)
        return lambda row, pictures: _checked(as_numbers(function(row["caption"], list(pictures), dict(row)), place), len(pictures), text)
    raise UserError(f"scorer is {text!r}; expected {FORMS}")


def _named(row: Mapping[str, Any]) -> Objects:
    if "objects" not in row:
        raise UserError("rows have no column objects, which a reader of drawings compares with; add it, or score by function:FILE.py:NAME")
    return read_objects(row)


def _checked(scores: list[Any], count: int, text: str) -> list[float]:
    if len(scores) != count or not all(map(is_finite, scores)):
        raise UserError(f"scorer {text} gave {scores} for {count} pictures; expected a finite number for each")
    return [float(score) for score in scores]

"""The class of a method by its name; ``options/methods.py`` lists the names."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mmalign.errors import UserError
from mmalign.options.methods import METHODS
from mmalign.training.method import Method


def find_method(name: str, options: Mapping[str, Any] | None = None) -> type[Method]:
    """Import a method's class.

    Args:
        name: As ``mmalign train`` calls it.
        options: Those of a run, some of which make it a variant.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}; expected one of {', '.join(METHODS)}")
    entry = METHODS[name]
    place = next((place for option, place in entry.variants.items() if (options or {}).get(option)), entry.place)
    module, _, attribute = place.partition(":")
    found: type[Method] = getattr(import_module(f"mmalign.methods.{module}"), attribute)
    return found

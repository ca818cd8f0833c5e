"""The class of a method by its name; ``options/methods.py`` lists the names."""

from importlib import import_module

from mmalign.errors import UserError
from mmalign.options.methods import METHODS
from mmalign.training.method import Method


def find_method(name: str) -> type[Method]:
    """Import a method's class.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}; expected one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].place.partition(":")
    found: type[Method] = getattr(import_module(f"mmalign.methods.{module}"), attribute)
    return found

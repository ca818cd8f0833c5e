"""Data sets and models that are in memory already: options hold a name, as of a file or a folder, and here it is found."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PREFIX = "memory:"
"""What such a name begins with."""
_HELD: dict[str, Any] = {}


def find_held(name: str | Path) -> Any | None:
    """Return what is held under a name; None where it is a file's or a folder's."""
    return _HELD.get(str(name))


@contextmanager
def holding(named: Mapping[str, Any]) -> Iterator[None]:
    """Hold things under their names for the length of the block."""
    _HELD.update(named)
    try:
        yield
    finally:
        for name in named:
            _HELD.pop(name, None)

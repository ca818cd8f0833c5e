"""Rewards by a Python function of the user's."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.files import hash_file
from mmalign.rewards.groups import Group, Rewards


class FunctionReward:
    """``NAME(prompt, responses, row)`` of a file: a list of numbers, one for each response, None where one can't be scored."""

    columns: Sequence[str] = ()

    def __init__(self, place: str) -> None:
        """Load ``FILE.py:NAME``.

        Raises:
            ValueError: If there is no such file, or it has no such function.
        """
        self._place = place
        self._path, self._function = load_function(place)

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Nothing is known of what the function reads."""

    def check_inputs(self) -> Any:
        """The file."""
        return hash_file(self._path)

    def __call__(self, groups: Sequence[Group]) -> list[Rewards]:
        """Ask the function about one group after the other."""
        found = (self._function(group.prompt, list(group.responses), dict(group.row)) for group in groups)
        return [as_numbers(returned, self._place) for returned in found]


def load_function(place: str) -> tuple[Path, Callable[..., Any]]:
    """Load ``FILE.py:NAME``, and name the file; raises as ``FunctionReward``. What it raises when it is called names the row."""
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or not path.is_file():
        raise UserError(f"reward function:{place}: there is no file {file or place}; expected function:FILE.py:NAME")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; expected function:FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    with _told(f"{path} can't be loaded"):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{path} has no function {name!r}; expected one that takes (prompt, responses, row) and returns a list of numbers")

    def call(prompt: str, said: Sequence[Any], row: Mapping[str, Any]) -> Any:
        with _told(f"function:{place} fails on row {row.get('id', prompt)!r}"):
            return function(prompt, said, row)

    return path, call


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Tell what a user's code raises in a line. Not an OSError: that is the machine's or a server's fault, as everywhere."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {type(error).__name__}: {error}; --traceback shows where") from error


def as_numbers(returned: Any, place: str) -> list[Any]:
    """Turn what a function of the user's returned, a list, an array or a tensor, into a list of Python's own numbers.

    Raises:
        ValueError: If it is none of these.
    """
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError(f"function:{place} returned {returned!r}; expected a list of numbers")
    return [value.item() if hasattr(value, "item") else value for value in values]

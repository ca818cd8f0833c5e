"""Files that others wrote: what is damaged or of another form becomes one error that names the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmalign.errors import UserError


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If it is missing, no UTF-8 text, or no JSON.
    """
    if not path.is_file():
        raise UserError(f"file not found: {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    # JSON's and Unicode's errors are ValueErrors, and so is that of a number with too many digits.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises as ``read_json``, and if it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


@contextmanager
def expected_form(what: str | Path) -> Iterator[None]:
    """Name the file where its fields are missing or of another type; for readers of files that mmalign did not write.

    Args:
        what: The file, or what else is read.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(f"{what} is not of the form expected: {error} is missing") from error
    except (AttributeError, IndexError, OverflowError, RecursionError, TypeError) as error:
        raise UserError(f"{what} is not of the form expected: {error}") from error

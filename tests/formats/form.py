"""One form of a file: an example, what is read from it, and how docs/formats.md shows it.

``docs/formats.md`` is made of these by ``python -m tests.formats.write``, and tests/formats/test_forms.py holds each form to what it says:
the example is written into an empty folder, read by the project's own reader, and compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Form:
    """An example of one form."""

    title: str
    """Heading: "Messages in parts"."""
    file: str
    """Name of the example's file: "pairs.jsonl"."""
    text: str
    """The file's text, about four lines, shown as it stands."""
    read: Callable[[Path], Any]
    """Reads the file at a path with the project's own reader."""
    expected: Any = None
    """What ``read`` returns."""
    refused: str = ""
    """Part of the error, where the form is refused."""
    note: str = ""
    """One sentence below the example."""
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Other files that the example needs, by name; not shown."""


@dataclass(frozen=True)
class Section:
    """Forms of one kind, under one heading."""

    title: str
    text: str
    """One or two sentences."""
    forms: tuple[Form, ...]


def save_form(form: Form, folder: Path) -> Path:
    """Write an example and what it needs into a folder; returns the path of its file."""
    for name, data in form.beside.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    path = folder / form.file
    path.parent.mkdir(parents=True, exist_ok=True)
    # A JSON Lines example may be broken into several lines to be read more easily.
    text = " ".join(form.text.split("\n")) if path.suffix == ".jsonl" and not _has_many_rows(form.text) else form.text
    path.write_text(text, encoding="utf-8")
    return path


def _has_many_rows(text: str) -> bool:
    return all(line.startswith("{") and line.endswith("}") for line in text.splitlines())

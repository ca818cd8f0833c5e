"""Class names: matched between splits, teachers and files, and put into words for a text tower.

Shape legend: C = classes.
"""

import csv
import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import UserError
from mmalign.files import not_utf8, read_json

# WordNet's ids, as ImageNet's folders are called.
_WORDNET = re.compile(r"n\d{8}")
# "0 tench", "0: tench", "0. tench", and Python's "{0: 'tench'," with its marks around.
_NUMBERED = re.compile(r"[{\s]*(\d+)\s*[:,;.)\t ]\s*(.+?)[,}\s]*")
# What stands between a class and its name.
_BETWEEN = re.compile(r"\s*[\s:=;]\s*")


def match_classes(theirs: Sequence[str], ours: Sequence[str], *, what: str) -> NDArray[np.int64]:
    """Find our classes in another's order: ``logits[:, order]`` are then in ours.

    Args:
        theirs: Names in the order of the other's numbers.
        ours: Names in the order of the data's.
        what: Whose names they are, for the error.

    Returns:
        (C,) places.

    Raises:
        ValueError: If the two are not the same set, with what either has alone.
    """
    theirs, ours = ([compose(name) for name in names] for names in (theirs, ours))
    place = {name: index for index, name in enumerate(theirs)}
    missing, unknown = [name for name in ours if name not in place], sorted(set(theirs) - set(ours))
    if missing or unknown or len(place) != len(theirs):
        alone = [f"{what} alone has {few(unknown)}"] if unknown else []
        alone += [f"the data alone have {few(missing)}"] if missing else []
        alone += [f"{what} has a name twice"] if len(place) != len(theirs) else []
        raise UserError(
            f"{what} knows classes {few(theirs)} and the data {few(ours)}; expected the same names, in any order: {', '.join(alone)}"
        )
    return np.array([place[name] for name in ours], dtype=np.int64)


def compose(name: str) -> str:
    """Spell accented letters as one character; folders that were unpacked on other systems have two."""
    return unicodedata.normalize("NFC", name)


def match_words(
    theirs: Sequence[str], ours: Sequence[str], *, descriptions: Mapping[str, str], words: Sequence[str] = (), what: str
) -> NDArray[np.int64]:
    """As ``match_classes``, and where the names are not the same set, by what they mean.

    Args:
        theirs: Names in the order of the other's numbers, such as WordNet ids.
        ours: Names in the order of the data's.
        descriptions: What the other calls its names in words: "tench, Tinca tinca" for n01440764. Each part between commas counts, and so
            do those of a name itself.
        words: What ours are called in words, if anybody said.
        what: Whose names ``theirs`` are.

    Raises:
        ValueError: As ``match_classes``.
    """
    if set(theirs) == set(ours):
        return match_classes(theirs, ours, what=what)
    meant: dict[str, set[int]] = {}
    for index, name in enumerate(theirs):
        text = descriptions.get(name, "")
        for part in {name, *name.split(","), text, *text.split(",")}:
            meant.setdefault(_plain(part), set()).add(index)
    for names in (ours, words):
        found = [meant.get(_plain(name), set()) for name in names]
        if len(found) == len(theirs) and all(len(one) == 1 for one in found) and len(set.union(*found)) == len(found):
            return np.array([place for one in found for place in one], dtype=np.int64)
    return match_classes(theirs, ours, what=what)


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[_-]", " ", name).casefold().split())


def few(names: Sequence[str]) -> str:
    """Show the first names and how many there are."""
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} ({len(names)})"


def read_class_names(path: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """Read what the classes are called in words, for a text tower's prompts.

    Args:
        path: JSON: a mapping of classes to names, ImageNet's ``{"0": ["n01440764", "tench"]}``, or a list in the classes' order. CSV: two
            columns, class and name. Any other file: lines "class name", such as "n01440764 tench", or a name a line in the classes' order.
            A table may also number the names from 0 or 1, in the classes' order.
        classes: The data's.

    Returns:
        C names, in the classes' order.

    Raises:
        ValueError: If the file has another form, or lacks a class, with the classes.
    """
    if path.suffix == ".json":
        table = _from_json(read_json(path), path)
    elif not path.is_file():
        raise UserError(f"file of class names not found: {path}")
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from error
        table = _from_csv(lines, path) if path.suffix == ".csv" else _from_lines(lines, classes, path)
    if not isinstance(table, list) and not set(classes) & set(table):
        table = _in_order(table) or table
    if isinstance(table, list):
        if len(table) != len(classes):
            raise UserError(f"{path} has {len(table)} names and the data {len(classes)} classes; expected one for each, in their order")
        numbers = [int(name) for name in classes if name.isdecimal()]
        if len(numbers) == len(classes) and numbers != sorted(numbers):
            raise UserError(
                f"{path} is a list of names, and the data's classes are folders called by numbers, in the order {few(classes)}; "
                "write the class before each name"
            )
        if odd := next(
            (name for name in table if (_WORDNET.search(name) and not _WORDNET.fullmatch(name)) or name.startswith(("{", "["))), None
        ):
            raise UserError(f"{path} has the name {odd!r}; write the class before each name, or the name alone")
        ours, theirs = [_plain(name) for name in classes], [_plain(name) for name in table]
        if set(ours) == set(theirs) and ours != theirs:
            raise UserError(
                f"{path} has the classes in the order {few(table)}, and the data in the order {few(classes)}; "
                "a list is in the data's order: write the class before each name"
            )
        return tuple(table)
    missing = [name for name in classes if not table.get(name, "").strip()]
    if missing:
        raise UserError(f"{path} has no name for {few(missing)}; it names {few(list(table))}")
    return tuple(table[name] for name in classes)


def check_words(names: Sequence[str]) -> list[str]:
    """Look whether names tell a text tower anything.

    Returns:
        What is odd with them, in words: numbers, names that two classes share.

    Raises:
        ValueError: If all are WordNet ids.
    """
    if all(_WORDNET.fullmatch(name) for name in names):
        raise UserError(
            f"classes are WordNet ids ({few(names)}), which no text tower can read; name a table of their names with --class-names"
        )
    notes = []
    if all(name.strip().isdecimal() for name in names):
        notes.append(f"classes are numbers ({few(names)}), and prompts say them as they are; --class-names gives them names")
    if shared := sorted({name for name in names if names.count(name) > 1}):
        notes.append(f"several classes are called {few(shared)}: a text tower can't tell them apart")
    return notes


def _from_json(value: Any, path: Path) -> dict[str, str] | list[str]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    if isinstance(value, Mapping) and value:
        if all(isinstance(name, str) for name in value.values()):
            return dict(value)
        pairs = list(value.values())
        if all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
            return dict(pairs)
    raise UserError(f"{path} holds {json.dumps(value)[:60]}; expected a mapping of classes to names, or a list of names")


def _from_csv(lines: Sequence[str], path: Path) -> dict[str, str]:
    rows = [row for row in csv.reader(lines) if row]
    odd = next((row for row in rows if len(row) != 2), None)
    if odd is not None or not rows:
        raise UserError(f"{path} has the row {odd}; expected two columns: class and name")
    # A heading is one name more, which no class asks for.
    return _to_table([(name.strip(), words.strip()) for name, words in rows], path)


def _to_table(pairs: Sequence[tuple[str, str]], path: Path) -> dict[str, str]:
    table: dict[str, str] = {}
    for name, words in pairs:
        if table.setdefault(name, words) != words:
            raise UserError(f"{path} calls {name} both {table[name]!r} and {words!r}; expected one name")
    return table


def _from_lines(lines: Sequence[str], classes: Sequence[str], path: Path) -> dict[str, str] | list[str]:
    rows = [line.strip() for line in lines if line.strip()]
    if all(row.startswith(("- ", "* ")) for row in rows):
        rows = [row[2:].strip() for row in rows]
    known = set(classes)
    pairs = [pair for row in rows if (pair := _split_row(row, known)) is not None]
    if pairs and not known.issuperset(rows):
        return _to_table(pairs, path)
    numbered = [_NUMBERED.fullmatch(row) for row in rows]
    if all(numbered) and not known.issuperset(rows):
        table = {found[1]: found[2].strip("'\"") for found in numbered if found is not None}
        return _in_order(table) or rows
    return rows


def _split_row(row: str, known: Collection[str]) -> tuple[str, str] | None:
    """Part a line into class and name: at the longest class that it begins with, which may hold spaces; None where it begins with none."""
    ends = (found for found in reversed(list(_BETWEEN.finditer(row))) if row[: found.start()] in known)
    end = next(ends, None)
    return None if end is None else (row[: end.start()], row[end.end() :])


def _in_order(table: Mapping[str, str]) -> list[str] | None:
    """Return the names of a table that numbers them from 0 or 1; None of another one."""
    numbers = sorted(int(key) for key in table if key.isdecimal())
    if len(numbers) < len(table) - 1 or not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
        return None
    # A line that is no number is a heading.
    return [name for _, name in sorted((int(key), name) for key, name in table.items() if key.isdecimal())]

"""Workbooks of spreadsheets (.xlsx), in which VLMEvalKit saves answers: the rows of the first sheet under its line of names."""

import re
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmalign.errors import UserError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_SHEETS, _STRINGS = re.compile(r"xl/worksheets/sheet(\d+)\.xml"), "xl/sharedStrings.xml"
# A sheet of a few kilobytes can unpack to all memory there is.
_LARGEST = 1 << 28


def read_workbook(path: Path) -> list[dict[str, Any]]:
    """Read the rows of the first sheet by the names in its first row; an empty cell is an empty text.

    Raises:
        ValueError: If the file is no workbook, is too large, or its first row names nothing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            numbers = [int(found[1]) for name in archive.namelist() if (found := _SHEETS.fullmatch(name))]
            shared = [_text_of(item) for item in _parse(archive, _STRINGS)] if _STRINGS in archive.namelist() else []
            sheet = _parse(archive, f"xl/worksheets/sheet{min(numbers)}.xml") if numbers else None
            if sheet is None:
                raise UserError(f"{path} holds no sheet; save the answers as JSON lines or CSV")
            cells = [_read_cells(row, shared) for row in sheet.iter(f"{_MAIN}row")]
    except (zipfile.BadZipFile, ElementTree.ParseError, OSError, EOFError, IndexError, ValueError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{path} can't be read as a workbook: {error}") from error
    names = {column: value for column, value in (cells[0] if cells else {}).items() if isinstance(value, str) and value}
    if not names:
        raise UserError(f"the first row of {path} names no columns; expected names such as index, question, prediction")
    return [{name: row.get(column, "") for column, name in names.items()} for row in cells[1:] if row]


def _parse(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    size = archive.getinfo(name).file_size
    if size > _LARGEST:
        raise UserError(f"{archive.filename}: {name} unpacks to {size:,} bytes, more than {_LARGEST:,}; save it as CSV")
    return ElementTree.fromstring(archive.read(name))


def _read_cells(row: ElementTree.Element, shared: list[str]) -> dict[str, Any]:
    """Values by the letters of their column."""
    cells = {}
    for place, cell in enumerate(row.iter(f"{_MAIN}c")):
        column = cell.get("r", "").rstrip("0123456789") or f"#{place}"
        value = _read_cell(cell, shared)
        if value is not None:
            cells[column] = value
    return cells


def _read_cell(cell: ElementTree.Element, shared: list[str]) -> Any:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return _text_of(cell)
    text = cell.findtext(f"{_MAIN}v")
    if text is None:
        return None
    if kind == "s":
        return shared[int(text)]
    if kind == "n":
        number = float(text)
        return int(number) if number.is_integer() else number
    return text


def _text_of(item: ElementTree.Element) -> str:
    """A text, of one run or of several."""
    return "".join(part.text or "" for part in item.iter(f"{_MAIN}t"))

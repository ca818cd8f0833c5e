"""Workbooks of spreadsheets (.xlsx), in which VLMEvalKit saves answers: the rows of the first sheet under its line of names."""

from datetime import date, time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from mmalign.errors import UserError


def read_workbook(path: Path) -> list[dict[str, Any]]:
    """Read the rows of the first sheet by the names in its first row; an empty cell is an empty text.

    Raises:
        ValueError: If openpyxl is not installed, the file is no workbook, or its first row names nothing.
    """
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise UserError(f"{path} is a workbook, which needs openpyxl: pip install 'mmalign[xlsx]'; or save it as CSV") from error
    # XML and zip errors of damaged files have no common base.
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        rows = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except (BadZipFile, OSError, EOFError, SyntaxError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read as a workbook: {error}") from error
    names = {column: value for column, value in enumerate(rows[0] if rows else []) if isinstance(value, str) and value}
    if not names:
        raise UserError(f"the first row of {path} names no columns; expected names such as index, question, prediction")
    filled = [row for row in rows[1:] if any(value is not None for value in row)]
    return [{name: _read_cell(row[column] if column < len(row) else None) for column, name in names.items()} for row in filled]


def _read_cell(value: Any) -> Any:
    """What was written: a spreadsheet takes answers such as 2024-01-01 for dates."""
    return "" if value is None else str(value) if isinstance(value, date | time) else value

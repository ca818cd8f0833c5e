"""Tables for the terminal and for Markdown files. A row that is shorter than the widest one is filled with empty cells."""

from collections.abc import Collection, Iterable, Sequence


def text_table(rows: Iterable[Sequence[object]], *, text: Collection[int] = (0,)) -> str:
    """Align the columns with two spaces between them; a row of a single cell, such as a heading, may be wider than its column.

    Args:
        rows: From the top, the header among them.
        text: Columns that are aligned left; the others hold numbers.
    """
    lines = [list(map(str, row)) for row in rows]
    columns = range(max(map(len, lines), default=0))
    widths = [max((len(line[column]) for line in lines if len(line) > max(1, column)), default=0) for column in columns]
    align = [str.ljust if column in text else str.rjust for column in columns]
    return "\n".join("  ".join(a(cell, width) for a, cell, width in zip(align, line, widths, strict=False)).rstrip() for line in lines)


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]], *, text: Collection[int] = (0,)) -> str:
    """Write a Markdown table; arguments as above, and a pipe in a cell does not end it."""
    width = len(header)
    rule = "|" + "".join("---|" if column in text else "---:|" for column in range(width))
    return "\n".join([_markdown_line(header, width), rule, *(_markdown_line(row, width) for row in rows)])


def _markdown_line(row: Sequence[object], width: int) -> str:
    cells = [str(cell).replace("|", "\\|") for cell in row]
    return f"| {' | '.join([*cells, *[''] * (width - len(cells))])} |"

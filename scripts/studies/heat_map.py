"""A table of numbers as a coloured grid in a PNG file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.studies.page import drawing


def save_heat_map(
    path: Path,
    values: Sequence[Sequence[float | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    centre: float | None = None,
    **texts: str,
) -> None:
    """Draw and write a heat map with the numbers in its cells.

    Args:
        path: PNG file.
        values: By row and column; None where there is none.
        rows: Names from the top.
        columns: Names from the left.
        centre: A value that is white, with blue below and red above; None for a one-way scale.
        **texts: title, xlabel and ylabel.
    """
    known = [value for line in values for value in line if value is not None]
    reach = max(abs(value - (centre or 0.0)) for value in known) or 1.0
    low, high = (min(known), max(known)) if centre is None else (centre - reach, centre + reach)
    size = (1.6 + 0.62 * len(columns), 1.1 + 0.32 * len(rows))
    with drawing(path, size, dpi=150, style={"font.size": 8.5}) as figure:
        axes = figure.add_subplot()
        numbers = [[float("nan") if value is None else value for value in line] for line in values]
        image = axes.imshow(numbers, cmap="viridis" if centre is None else "RdBu_r", vmin=low, vmax=high, aspect="auto")
        axes.set_xticks(range(len(columns)), list(columns))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set(**texts)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if value is not None:
                    red, green, blue, _ = image.to_rgba(np.array([value]))[0]
                    ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
                    axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=7.5)

"""Drawings of difficulty scores: where a proxy's gaps lie, and how two proxies' gaps go together.

Shape legend: B = pairs.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray

from mmalign.reports.plots import COLOURS, INK, draw_svg
from mmalign.reports.training_plots import QUARTILE_COLOURS, QUARTILE_NAMES

MAX_POINTS = 1200
_NUM_BINS = 40
# Gaps beyond are counted in the outermost bars.
_TAIL = 0.005


def draw_gaps(gaps: NDArray[np.float64], *, name: str, title: str, x_label: str, alt: str) -> Markup:
    """Draw how many pairs have which gap, in two colours that meet at zero.

    Args:
        gaps: (B,) score of chosen - score of rejected.
        name: Of the drawing, unique on the page.
        title: Above the drawing.
        x_label: What is measured.
        alt: What a reader who can't see it should know.
    """
    edges = gap_edges(gaps)
    inside = np.clip(gaps, edges[0], edges[-1])

    def draw(axes: Axes) -> None:
        sides = ((inside[gaps <= 0], COLOURS[2], "rejected or neither"), (inside[gaps > 0], COLOURS[1], "chosen"))
        for values, colour, words in sides:
            axes.hist(values, bins=edges.tolist(), color=colour, rwidth=0.92, label=f"prefers {words} ({len(values):,})")
        axes.axvline(0, color=INK, linewidth=1.2)
        axes.set(title=title, xlabel=x_label, ylabel="pairs")
        axes.figure.legend(loc="outside lower center", ncols=2, fontsize=8, handlelength=1.2, columnspacing=1)

    return draw_svg(draw, name=name, alt=alt)


def gap_edges(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return edges of equal bars of which one is exactly zero, from the lowest to the highest half percent of the gaps."""
    low, high = min(0.0, float(np.quantile(gaps, _TAIL))), max(0.0, float(np.quantile(gaps, 1 - _TAIL)))
    width = (high - low or 1.0) / _NUM_BINS
    # A gap of exactly zero belongs to the left bar, so there is one even where no gap is negative.
    return width * np.arange(np.floor(min(low / width, -1) + 1e-9), np.ceil(max(high / width, 1) - 1e-9) + 1)


def draw_agreement(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    quartiles: Sequence[int],
    *,
    names: tuple[str, str],
    name: str,
    title: str,
    alt: str,
) -> Markup:
    """Draw two proxies' gaps against each other, a point per pair, coloured by quartile of difficulty.

    Args:
        first: (B,) gaps in standard deviations.
        second: (B,) the same of the other proxy.
        quartiles: (B,) from 1, the easiest.
        names: The proxies'.
        name: Of the drawing, unique on the page.
        title: Above the drawing.
        alt: What a reader who can't see it should know.
    """
    chosen = np.arange(len(first)) if len(first) <= MAX_POINTS else np.random.default_rng(0).choice(len(first), MAX_POINTS, replace=False)
    colours = np.array(QUARTILE_COLOURS)[np.array(quartiles)[chosen] - 1]

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.9)
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.scatter(first[chosen], second[chosen], s=9, c=colours, alpha=0.75, linewidths=0)
        for words, colour in zip(QUARTILE_NAMES, QUARTILE_COLOURS, strict=True):
            axes.scatter([], [], s=18, color=colour, label=words)
        axes.set(title=title, xlabel=f"{names[0]} gap / std", ylabel=f"{names[1]} gap / std")
        axes.figure.legend(loc="outside lower center", ncols=4, fontsize=8, handletextpad=0.1, columnspacing=1)

    return draw_svg(draw, name=name, alt=alt, width=5.2, height=4.3)

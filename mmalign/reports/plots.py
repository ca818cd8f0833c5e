"""Plots as inline SVG that takes its text colour from the page, so that one drawing serves light and dark."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmalign.files import whole

Dash = str | tuple[int, tuple[float, ...]]

# Readable on white and on near-black, and told apart with any colour vision (after Okabe and Ito); dashes say it again.
COLOURS = ("#7d8590", "#3a86d4", "#d9730d", "#1a9e77", "#b5589f")
DASHES: tuple[Dash, ...] = ("-", (0, (5, 1.5)), "-", (0, (1, 1)), (0, (5, 1, 1, 1)))
# Replaced by currentColor after drawing; matplotlib itself knows no such colour.
INK = "#010203"
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Curve:
    """A line over training steps: (step, value) points."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dash: Dash = "-"


def model_colour(index: int) -> str:
    """The colour of a model, by its place in the list, in every drawing of a page."""
    return COLOURS[index % len(COLOURS)]


def draw_curves(
    curves: Sequence[Curve],
    *,
    name: str,
    title: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    x_label: str = "step",
) -> Markup:
    """Draw lines over training steps, or over what else ``x_label`` says; a reader who can't see them is told their ends.

    Args:
        curves: The lines.
        name: Of the drawing, unique on the page: ids inside it start so.
        title: Above the drawing.
        y_label: What is measured.
        y_limits: Lowest and highest value to make room for, where several drawings are to share a scale.
        x_label: What the lines run over.
    """

    def draw(axes: Axes) -> None:
        _plot_curves(axes, curves, y_limits)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.legend(loc="best", fontsize=8.5)

    ends = [f"{curve.name} from {curve.points[0][1]:.3g} to {curve.points[-1][1]:.3g}" for curve in curves]
    return draw_svg(draw, name=name, alt=f"{title}, by {x_label}: {'; '.join(ends)}.")


@dataclass(frozen=True)
class CurvePanel:
    """One drawing of a figure; no curves leave it empty."""

    title: str
    y_label: str
    curves: Sequence[Curve]


def save_curves(out: Path, rows: Sequence[Sequence[CurvePanel]]) -> None:
    """Save a figure of curves over training steps; the panels of a row share their scale, and all share one legend.

    Args:
        out: PNG or SVG file.
        rows: Panels from the top and from the left, as many in each row.
    """
    with rc_context({**_STYLE, "svg.hashsalt": out.name}):
        figure = Figure(figsize=(4.4 * len(rows[0]) + 0.4, 2.9 * len(rows) + 0.4))
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharex="col", sharey="row")
        for panels, places in zip(rows, grid, strict=True):
            for panel, axes in zip(panels, places, strict=True):
                _plot_curves(axes, panel.curves, None)
                axes.set_title(panel.title)
            places[0].set_ylabel(panels[0].y_label)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        shown: dict[str, Any] = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=len(shown))
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if out.suffix == ".svg" else {"Software": None}
        with whole(out) as partial:
            figure.savefig(partial, format=out.suffix[1:], dpi=150, facecolor="white", metadata=metadata)


def _plot_curves(axes: Axes, curves: Sequence[Curve], y_limits: tuple[float, float] | None) -> None:
    for curve in curves:
        x, y = zip(*curve.points, strict=True)
        mark = "o" if len(x) == 1 else ""
        axes.plot(x, y, color=curve.colour, linestyle=curve.dash, linewidth=1.8, marker=mark, label=curve.name)
    if y_limits is not None:
        axes.update_datalim([(curves[0].points[0][0], limit) for limit in y_limits])
        axes.autoscale_view()


def draw_histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    name: str,
    title: str,
    x_label: str,
    alt: str,
    bins: int = 20,
    limits: tuple[float, float] = (0, 1),
    stacked: bool = True,
) -> Markup:
    """Draw counts of values within the limits, a colour per group: on top of each other, or behind each other as outlines."""

    def draw(axes: Axes) -> None:
        colours = COLOURS[1 : 1 + len(groups)]
        labels = [f"{group} ({len(values):,})" for group, values in groups.items()]
        look = {"stacked": True, "rwidth": 0.92} if stacked else {"histtype": "step", "linewidth": 1.8}
        axes.hist(list(groups.values()), bins=bins, range=limits, color=colours, label=labels, **look)
        axes.set(title=title, xlabel=x_label, ylabel="pairs", xlim=limits)
        axes.legend(loc="best", fontsize=8.5)

    return draw_svg(draw, name=name, alt=alt, width=5.2)


@dataclass(frozen=True)
class Bar:
    """A value with the interval around it, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def draw_bars(bars: Mapping[str, Sequence[Bar | None]], models: Sequence[str], *, name: str, title: str, x_label: str, alt: str) -> Markup:
    """Draw horizontal bars with their intervals, by metric and in it by model, from the top.

    Args:
        bars: Metric -> a bar for each model, None where it has no value.
        models: Names, in the order of their colours.
        name: Of the drawing, unique on the page.
        title: Above the drawing.
        x_label: What is measured.
        alt: What a reader who can't see it should know.
    """

    def draw(axes: Axes) -> None:
        height = 0.8 / len(models)
        for index, model in enumerate(models):
            present = [(row, bar[index]) for row, bar in enumerate(bars.values())]
            places = [row + height * (index - (len(models) - 1) / 2) for row, bar in present if bar is not None]
            shown = [bar for _, bar in present if bar is not None]
            axes.barh(places, [bar.value for bar in shown], height=0.88 * height, color=model_colour(index), label=model)
            for place, bar in zip(places, shown, strict=True):
                if bar.low is not None and bar.high is not None:
                    axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.3, marker="|", markersize=5)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.set(title=title, xlabel=x_label, ylim=(len(bars) - 0.45, -0.55))
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.figure.legend(loc="outside lower left", ncols=3, fontsize=8.5)

    return draw_svg(draw, name=name, alt=alt, width=6.4, height=1.35 + 0.2 * len(bars) * (len(models) + 0.6) + 0.18 * (len(models) // 4))


def draw_svg(draw: Callable[[Axes], None], *, name: str, alt: str, width: float = 4.2, height: float = 2.9) -> Markup:
    """Draw on one pair of axes, inline: ``name`` is unique on the page, ``alt`` is for those who can't see it."""
    # The figure is made without pyplot: no global state, no display. A fixed salt makes equal input give equal bytes.
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(buffer.getvalue(), name=name, alt=alt)


def _inline(svg: str, *, name: str, alt: str) -> Markup:
    """Make a stand-alone SVG fit to stand in a page: no prologue, no fixed size, ids of its own, a text for screen readers."""
    # A name may come from a file of results, and stands in attributes.
    name = re.sub(r"[^A-Za-z0-9-]", "-", name)
    body = svg[svg.index("<svg") :].replace(INK, "currentColor")
    body = re.sub(r'<svg[^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img" aria-label="@alt@">', body, count=1)
    # Its style sheet would reach every element of the page, and its list of fonts is longer than the words set in them.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]+", "font-family: inherit", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    return Markup(body.replace("@alt@", str(escape(alt)), 1))

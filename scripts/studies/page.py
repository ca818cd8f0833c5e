"""Pages of the studies: arms compared over seeds, tables, figures, and prose that is kept above what was measured.

Object F1 is the harmonic mean of a caption's precision (100 - CHAIR_i) and coverage, which silence does not raise.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy import stats

from mmalign.files import read_json, write_whole
from mmalign.tables import markdown_table

LEVEL = 0.95
MARK_START = "<!-- measured"
MARK = f"{MARK_START} -->"
PLOT_STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.2, "legend.frameon": False}
GREY = "#7d8590"

Metrics = Mapping[str, float]
Seeds = Mapping[int, Metrics]
"""Seed -> metrics of one arm."""
Runs = Mapping[str, Seeds]
"""Arm, by the name of its files -> its seeds."""


def read_runs(folder: Path, *, read: Callable[[Path], Metrics] = read_json) -> Runs:
    """Read ``SEED/ARM.json`` of a folder."""
    found: dict[str, dict[int, Metrics]] = {}
    for path in sorted(folder.glob("*/*.json")):
        if not path.name.endswith(".log.json"):
            found.setdefault(path.stem, {})[int(path.parent.name)] = read(path)
    return found


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its 95% interval (Student's t); NaN with one seed."""

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        """Show one decimal."""
        return f"{self.mean:.1f}" + ("" if np.isnan(self.half_width) else f" ± {self.half_width:.1f}")


class Difference(NamedTuple):
    """Mean difference of two arms seed by seed, half its 95% interval, and the p-value of the paired t-test."""

    mean: float
    half_width: float
    p_value: float

    def __str__(self) -> str:
        """Show one decimal, with the p-value."""
        if np.isnan(self.half_width):
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} ± {self.half_width:.1f} (p {'< 0.001' if self.p_value < 0.001 else f'= {self.p_value:.3f}'})"


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean from one value per seed.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("no values: no seed of this arm is finished")
    array = np.asarray(values, dtype=float)
    if len(array) == 1:
        return Estimate(float(array[0]), float("nan"), 1)
    width = stats.t.ppf((1 + LEVEL) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return Estimate(float(array.mean()), float(width), len(array))


def compare(values: Mapping[int, float], others: Mapping[int, float]) -> Difference:
    """Compare two arms over the seeds that both have, each given as seed -> value."""
    seeds = sorted(set(values) & set(others))
    mine, theirs = ([arm[seed] for seed in seeds] for arm in (values, others))
    differences = estimate([a - b for a, b in zip(mine, theirs, strict=True)])
    if differences.count == 1:
        return Difference(*differences[:2], float("nan"))
    # The t-test has no number where all differences are equal.
    constant = np.ptp(np.subtract(mine, theirs)) == 0
    p_value = float(differences.mean == 0) if constant else float(stats.ttest_rel(mine, theirs).pvalue)
    return Difference(*differences[:2], p_value)


def estimate_metric(seeds: Seeds, key: str) -> Estimate:
    """Estimate one metric of an arm."""
    return estimate([metrics[key] for metrics in seeds.values()])


def compare_metric(seeds: Seeds, others: Seeds, key: str) -> Difference:
    """Compare one metric of two arms."""
    return compare({seed: one[key] for seed, one in seeds.items()}, {seed: one[key] for seed, one in others.items()})


def mean_curve(logs: Sequence[Sequence[Metrics]], key: str) -> tuple[list[float], list[float]]:
    """Average a logged number over runs: the steps that all of them logged it at, and the means."""
    curves = [{row["step"]: row[key] for row in log if key in row} for log in logs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return steps, [sum(curve[step] for curve in curves) / len(curves) for step in steps]


def write_measured(page: Path, title: str, parts: Sequence[str], *, mark: str = MARK) -> Path:
    """Write the parts below the mark, up to the next one; the rest is kept, a title where there is no page yet."""
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# {title}"
    above, _, below = text.partition(mark)
    _, opening, other = below.partition(MARK_START)
    rest = f"\n{opening}{other}" if opening else ""
    write_whole(page, f"{above.rstrip()}\n\n{mark}\n\n" + "\n\n".join(parts) + f"\n{rest}")
    return page


def arm_rows(runs: Runs, names: Mapping[str, str], columns: Iterable[str]) -> dict[str, list[object]]:
    """Lay out the arms that have run, in the order of ``names``: name, seeds, and each metric's mean with its interval."""
    keys = list(columns)
    return {arm: [name, len(runs[arm]), *(estimate_metric(runs[arm], key) for key in keys)] for arm, name in names.items() if arm in runs}


def start_row(name: str, metrics: Metrics, columns: Iterable[str]) -> list[object]:
    """The row of a model that all arms start from, measured once."""
    return [name, "", *(f"{metrics[key]:.1f}" for key in columns)]


def search_table(searches: Mapping[tuple[str, str], Mapping[tuple[str, str], float]], *, name: str) -> str:
    """Lay out searches: by strength one number per learning rate, in the order of the grid, the best in bold.

    Args:
        searches: Arm and what its strength is called -> (strength, learning rate) -> score, in the order of the grid.
        name: Heads the arms.
    """
    rates = learning_rates(searches.values())
    rows: list[list[object]] = []
    for names, scores in searches.items():
        best = max(scores, key=lambda key: scores[key])
        shown = {key: f"**{score:.1f}**" if key == best else f"{score:.1f}" for key, score in scores.items()}
        values = sorted({value for value, _ in scores}, key=float)
        cells = (f"{value}: {', '.join(shown.get((value, rate), '-') for rate in rates)}" for value in values)
        rows.append([*names, *cells])
    return markdown_table([name, "strength", *[""] * (max(map(len, rows)) - 2)], rows)


def learning_rates(searches: Iterable[Mapping[tuple[str, str], float]]) -> list[str]:
    """List the learning rates that searches tried."""
    return list(dict.fromkeys(rate for scores in searches for _, rate in scores))


@contextmanager
def drawing(path: Path, size: tuple[float, float], *, dpi: int = 130, style: Mapping[str, Any] = PLOT_STYLE) -> Iterator[Figure]:
    """Make a figure, and save it at the end."""
    with rc_context(dict(style)):
        figure = Figure(figsize=size, layout="constrained", dpi=dpi)
        yield figure
        figure.savefig(path)


class Mark(NamedTuple):
    """How an arm is drawn: its colour, its name in the legend, a note beside its mean, and options of the mean's marker."""

    colour: str
    label: str | None
    note: str
    mean: Mapping[str, Any]


def draw_tradeoff(
    path: Path,
    runs: Runs,
    marks: Mapping[str, Mark],
    *,
    start: tuple[Metrics, Mapping[str, Any]],
    size: tuple[float, float],
    points: Mapping[str, Any],
    legend: Mapping[str, Any],
) -> None:
    """Draw hallucination against coverage: a point per run, a marker per arm's mean, and the start with its marker's options."""
    axis_names = {"hallucinated": "hallucinated captions, %", "coverage": "coverage, %"}
    with drawing(path, size) as figure:
        axes = figure.subplots()
        for arm, mark in marks.items():
            if arm in runs:
                x, y = ([one[key] for one in runs[arm].values()] for key in axis_names)
                middle = sum(x) / len(x), sum(y) / len(y)
                axes.scatter(x, y, color=mark.colour, **points)
                axes.scatter(*middle, s=70, label=mark.label, **mark.mean)
                axes.annotate(mark.note, middle, textcoords="offset points", xytext=(6, 4), fontsize=8)
        metrics, style = start
        axes.scatter(*(metrics[key] for key in axis_names), color=GREY, **style)
        axes.set(**dict(zip(("xlabel", "ylabel"), axis_names.values(), strict=True)))
        axes.legend(**legend)

"""Several models' results side by side: rows of values with intervals, as Markdown and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mmalign.errors import UserError
from mmalign.evaluation.metrics import MetricInfo
from mmalign.options.evaluate import BENCHMARKS
from mmalign.reports.metric_names import describe_metric, find_owner, is_baseline
from mmalign.reports.results_table import ARROWS, escape_pipe, markdown_line, nearness


class Range(NamedTuple):
    """Ends of an interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class EvalRun:
    """A model's results.

    Attributes:
        name: As shown.
        metrics: Metric key -> value.
        num_answers: Benchmark -> number of answers behind its metrics.
        intervals: Metric key -> interval, of those that have one.
        differences: Metric key -> interval of the difference from the first model, of those that have one.
    """

    name: str
    metrics: Mapping[str, float]
    num_answers: Mapping[str, int]
    intervals: Mapping[str, Range] = field(default_factory=dict)
    differences: Mapping[str, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A value as shown; empty where a model has none.

    Attributes:
        text: The value.
        interval: Its interval, or empty.
        best: Whether it is the best of its row at the shown precision.
        differs: Whether the difference from the first model has an interval without zero.
    """

    text: str = "-"
    interval: str = ""
    best: bool = False
    differs: bool = False


@dataclass(frozen=True)
class Row:
    """A metric of every model."""

    key: str
    info: MetricInfo
    cells: tuple[Cell, ...]

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return "" if self.info.better is None else ARROWS[self.info.better]


@dataclass(frozen=True)
class Group:
    """A benchmark's rows, the number of answers by model, and what constant answers would score."""

    benchmark: str
    title: str
    num_answers: tuple[int, ...]
    rows: tuple[Row, ...]
    baselines: tuple[str, ...]


def build_comparison(runs: Sequence[EvalRun]) -> list[Group]:
    """Lay out every metric that any model has: a benchmark's metrics for the whole of it first, then those of its groups.

    Raises:
        ValueError: If there are no models, or names repeat.
    """
    names = [run.name for run in runs]
    if not names or len(set(names)) != len(names):
        raise UserError(f"the models are {names}; expected one or more with different names")
    keys = list(dict.fromkeys(key for run in runs for key in run.metrics))
    present = {key.split("/")[0] for key in keys}
    known = [name.replace("-", "_") for name in BENCHMARKS]
    order = [prefix for prefix in known if prefix in present] + sorted(present - set(known))
    return [_build_group(benchmark, [key for key in keys if key.split("/")[0] == benchmark], runs) for benchmark in order]


def markdown_table(groups: Sequence[Group], names: Sequence[str]) -> str:
    """The comparison as a Markdown table: best values bold, intervals in brackets."""
    lines = [markdown_line(["", *map(escape_pipe, names)]), markdown_line(["---", *("---:" for _ in names)])]
    for group in groups:
        counts = [f"{number:,}" if number else "-" for number in group.num_answers]
        lines.append(markdown_line([f"**{escape_pipe(group.title)}**, answers", *counts]))
        for row in group.rows:
            label = f"{escape_pipe(row.info.label)} {row.arrow}".strip()
            lines.append(markdown_line([label, *map(_markdown_cell, row.cells)]))
        lines += [markdown_line([escape_pipe(text), *("" for _ in names)]) for text in group.baselines]
    return "\n".join(lines)


def csv_table(groups: Sequence[Group], runs: Sequence[EvalRun]) -> str:
    """The comparison as CSV in full precision, a metric a row; baselines are left out."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["metric", *(f"{run.name}{part}" for run in runs for part in ("", " low", " high"))])
    for row in (row for group in groups for row in group.rows):
        writer.writerow([row.key, *(value for run in runs for value in _full(run, row.key))])
    return buffer.getvalue()


def show_value(value: float, info: MetricInfo) -> str:
    """Percent with one decimal, another number with up to four digits."""
    return f"{value:.4g}" if info.unit == "number" else f"{scale_value(value, info) + 0.0:.1f}"


def scale_value(value: float, info: MetricInfo) -> float:
    """A share in percent; all else as it is."""
    return 100 * value if info.unit == "share" else value


def _build_group(benchmark: str, keys: Sequence[str], runs: Sequence[EvalRun]) -> Group:
    shown = sorted((key for key in keys if not is_baseline(key)), key=lambda key: key.count("/"))
    answers = tuple(run.num_answers.get(benchmark, 0) for run in runs)
    rows = tuple(_build_row(key, runs) for key in shown)
    owner = find_owner(benchmark)
    return Group(benchmark, benchmark if owner is None else owner.title, answers, rows, _baselines(benchmark, runs))


def _build_row(key: str, runs: Sequence[EvalRun]) -> Row:
    info = describe_metric(key)
    values = {run.name: run.metrics[key] for run in runs if key in run.metrics}
    best = _best({name: float(show_value(value, info)) for name, value in values.items()}, info)
    return Row(key, info, tuple(_build_cell(key, info, run, best=run.name in best) for run in runs))


def _build_cell(key: str, info: MetricInfo, run: EvalRun, *, best: bool) -> Cell:
    if key not in run.metrics:
        return Cell()
    interval, difference = run.intervals.get(key), run.differences.get(key)
    text = "" if interval is None else f"{show_value(interval.low, info)} to {show_value(interval.high, info)}"
    differs = difference is not None and (difference.low > 0 or difference.high < 0)
    return Cell(show_value(run.metrics[key], info), text, best, differs)


def _best(shown: Mapping[str, float], info: MetricInfo) -> set[str]:
    """Names of the best at the shown precision; nobody where all are equal or no way is better."""
    if info.better is None:
        return set()
    costs = {name: nearness(value, info.better) for name, value in shown.items()}
    if len(set(costs.values())) < 2:
        return set()
    return {name for name, cost in costs.items() if cost == min(costs.values())}


def _baselines(benchmark: str, runs: Sequence[EvalRun]) -> tuple[str, ...]:
    """``<benchmark>/always_no/f1``, the same for whoever answered the same questions, in words."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        for key, value in run.metrics.items():
            first, *rest = key.split("/")
            if first == benchmark and len(rest) == 2 and rest[0].startswith("always_"):
                info = describe_metric(f"{benchmark}/{rest[1]}")
                found.setdefault(rest[0], {}).setdefault(info.label, show_value(value, info))
    return tuple(
        f"{name.replace('_', ' ').capitalize()}: " + ", ".join(f"{label} {value}" for label, value in values.items())
        for name, values in found.items()
    )


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    text += " †" if cell.differs else ""
    return f"{text} ({cell.interval})" if cell.interval else text


def _full(run: EvalRun, key: str) -> list[float | str]:
    interval = run.intervals.get(key)
    return [run.metrics.get(key, ""), *(("", "") if interval is None else interval)]

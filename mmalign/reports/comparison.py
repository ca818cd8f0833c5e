"""Several models' results side by side: rows of values with intervals, as text, Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mmalign.errors import UserError
from mmalign.evaluation.metrics import Better, MetricInfo
from mmalign.reports.metric_names import PREFIXES, describe_metric, find_owner, is_baseline
from mmalign.tables import markdown_table, text_table

ARROWS: dict[Better, str] = {"lower": "↓", "higher": "↑", "near_half": "→ 50"}


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
        differences: Name of an earlier model -> metric key -> interval of the difference from it, of those that have one.
    """

    name: str
    metrics: Mapping[str, float]
    num_answers: Mapping[str, int]
    intervals: Mapping[str, Range] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, Range]] = field(default_factory=dict)


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
    def label(self) -> str:
        """In words, with an arrow that says which way is better."""
        return self.info.label if self.info.better is None else f"{self.info.label} {ARROWS[self.info.better]}"

    @property
    def is_whole(self) -> bool:
        """Whether it stands for the whole benchmark, not for one of its groups."""
        return self.key.count("/") == 1


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
    order = [prefix for prefix in PREFIXES if prefix in present] + sorted(present - PREFIXES.keys())
    return [_build_group(benchmark, [key for key in keys if key.split("/")[0] == benchmark], runs) for benchmark in order]


def terminal_comparison(groups: Sequence[Group], names: Sequence[str]) -> str:
    """The rows that stand for whole benchmarks as aligned text: best values starred, differences from the first model marked."""
    rows: list[list[str]] = [["", *(f"{name}  " for name in names)]]
    for group in groups:
        counts = " / ".join(f"{number:,}" for number in sorted(set(group.num_answers) - {0}))
        rows.append([f"{group.title}, {counts} answers per model"])
        rows += [[f"  {row.label}", *map(_terminal_cell, row.cells)] for row in group.rows if row.is_whole]
    legend = "* best of its row; ↓ lower is better, ↑ higher, → 50 nearer to half"
    if any(cell.differs for group in groups for row in group.rows for cell in row.cells):
        legend += f"\n† its difference from {names[0]} has a 95% interval without zero"
    return f"{text_table(rows)}\n{legend}"


def markdown_comparison(groups: Sequence[Group], names: Sequence[str]) -> str:
    """Every row as a Markdown table: best values bold, intervals in brackets."""
    rows: list[list[str]] = []
    for group in groups:
        counts = [f"{number:,}" if number else "-" for number in group.num_answers]
        rows.append([f"**{group.title}**, answers", *counts])
        rows += [[row.label, *map(_markdown_cell, row.cells)] for row in group.rows]
        rows += [[text] for text in group.baselines]
    return markdown_table(["", *names], rows)


def csv_comparison(groups: Sequence[Group], runs: Sequence[EvalRun]) -> str:
    """The comparison as CSV in full precision, a metric per row; baselines are left out."""
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
    return Row(key, info, tuple(_build_cell(key, info, run, best=run.name in best, first=runs[0].name) for run in runs))


def _build_cell(key: str, info: MetricInfo, run: EvalRun, *, best: bool, first: str) -> Cell:
    if key not in run.metrics:
        return Cell()
    interval, difference = run.intervals.get(key), run.differences.get(first, {}).get(key)
    text = "" if interval is None else f"{show_value(interval.low, info)} to {show_value(interval.high, info)}"
    differs = difference is not None and (difference.low > 0 or difference.high < 0)
    return Cell(show_value(run.metrics[key], info), text, best, differs)


def _best(shown: Mapping[str, float], info: MetricInfo) -> set[str]:
    """Names of the best at the shown precision; nobody where all are equal or no way is better."""
    if info.better is None:
        return set()
    costs = {name: _cost(value, info.better) for name, value in shown.items()}
    if len(set(costs.values())) < 2:
        return set()
    return {name for name, cost in costs.items() if cost == min(costs.values())}


def _cost(shown: float, better: Better) -> float:
    """The lowest of a row is the best one."""
    if better == "near_half":
        return round(abs(shown - 50), 1)
    return shown if better == "lower" else -shown


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


def _terminal_cell(cell: Cell) -> str:
    return f"{cell.text}{'*' if cell.best else ' '}{'†' if cell.differs else ' '}"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    text += " †" if cell.differs else ""
    return f"{text} ({cell.interval})" if cell.interval else text


def _full(run: EvalRun, key: str) -> list[float | str]:
    interval = run.intervals.get(key)
    return [run.metrics.get(key, ""), *(("", "") if interval is None else interval)]

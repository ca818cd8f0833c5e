"""The results of several models as one table: which rows, how a value is shown, which is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmalign.errors import UserError

Better = Literal["lower", "higher", "near_half"]


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """A model's results and its training log.

    Attributes:
        name: As shown: "SFT", "DPO", "DA-DPO".
        metrics: Metric key -> value; shares between 0 and 1.
        num_answers: Benchmark -> number of answers behind its metrics; "pope" and "chair" are needed, "general" with its metric.
        log_history: The trainer's log, a dict a logged step.
    """

    name: str
    metrics: Mapping[str, float]
    num_answers: Mapping[str, int]
    log_history: Sequence[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class MetricRow:
    """A row of the table."""

    key: str
    label: str
    better: Better
    optional: bool = False

    @property
    def benchmark(self) -> str:
        """The part of the key before its first slash."""
        return self.key.split("/")[0]


_SPLITS = ("random", "popular", "adversarial")
_SPLIT_METRICS: tuple[tuple[str, str, Better], ...] = (
    ("accuracy", "accuracy", "higher"),
    ("f1", "F1", "higher"),
    ("yes_ratio", "share of yes", "near_half"),
)
GROUPS: dict[str, tuple[MetricRow, ...]] = {
    "Describing the image (CHAIR)": (
        MetricRow("chair/sentence", "Captions with an absent object", "lower"),
        MetricRow("chair/instance", "Absent among the named objects", "lower"),
        MetricRow("chair/recall", "Coverage: present objects named", "higher"),
    ),
    "Is there a ...? (POPE)": (
        MetricRow("pope/f1", "F1, mean of the splits", "higher"),
        *(
            MetricRow(f"pope/{split}/{name}", f"{split.capitalize()}: {label}", better)
            for split in _SPLITS
            for name, label, better in _SPLIT_METRICS
        ),
    ),
    "Other questions": (MetricRow("general/accuracy", "Accuracy", "higher", optional=True),),
}
ARROWS = {"lower": "↓", "higher": "↑", "near_half": "→ 50"}


@dataclass(frozen=True)
class TableCell:
    """A value as shown, in percent, and whether it is the row's best."""

    text: str
    best: bool


@dataclass(frozen=True)
class TableRow:
    """A row ready to print: label with the direction that is better, and a cell for each model."""

    label: str
    arrow: str
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class TableGroup:
    """Rows of one benchmark and the number of answers that each model gave on it."""

    title: str
    num_answers: tuple[int, ...]
    rows: tuple[TableRow, ...]


def to_percent(value: float) -> float:
    """Round a share to the tenth of a percent that is shown; comparisons use it too, so that words and table agree."""
    # Adding zero turns -0.0 into 0.0.
    return round(100 * value, 1) + 0.0


def nearness(shown: float, better: Better) -> float:
    """How far a value, in percent as shown, is from the best: the lowest of a row is the best one."""
    if better == "near_half":
        return round(abs(shown - 50), 1)
    return shown if better == "lower" else -shown


def build_table(models: Sequence[ModelRun]) -> list[TableGroup]:
    """Lay out the results; equal best values are all marked, and none where all models are equal.

    Raises:
        ValueError: If names repeat, or a model lacks a metric or a number of answers.
    """
    check_models(models)
    groups = []
    for title, metric_rows in GROUPS.items():
        present = [row for row in metric_rows if not row.optional or any(row.key in model.metrics for model in models)]
        if present:
            rows = tuple(_build_row(row, models) for row in present)
            groups.append(TableGroup(title, tuple(_count(model, present[0].benchmark) for model in models), rows))
    return groups


def check_models(models: Sequence[ModelRun]) -> None:
    """Refuse what can't be compared.

    Raises:
        ValueError: If there are fewer than two models or a name repeats.
    """
    names = [model.name for model in models]
    if len(names) < 2 or len(set(names)) != len(names):
        raise UserError(f"the models are {names}; expected two or more with different names, the starting point first")


def read_metric(model: ModelRun, key: str) -> float:
    """Return a share.

    Raises:
        ValueError: If the model has no such metric, or it is no number between 0 and 1.
    """
    if key not in model.metrics:
        raise UserError(f"{model.name} has no metric {key}; it has {', '.join(sorted(model.metrics)) or 'none'}")
    value = model.metrics[key]
    if not 0 <= value <= 1:
        raise UserError(f"{model.name}: {key} is {value}; expected a share between 0 and 1")
    return value


def text_table(models: Sequence[ModelRun], *, markdown: bool = False) -> str:
    """The table as text: aligned columns for the terminal, best values starred; or markdown, best values bold.

    Raises:
        ValueError: As ``build_table``.
    """
    groups = build_table(models)
    body = [(group, _text_rows(group, markdown=markdown)) for group in groups]
    # A starred value ends one column later than its digits; the names end with the digits.
    header = ["%", *(escape_pipe(model.name) if markdown else f"{model.name} " for model in models)]
    if markdown:
        lines = [markdown_line(header), markdown_line(["---", *("---:" for _ in models)])]
        for group, rows in body:
            lines.append(markdown_line([f"**{_group_title(group)}**", *("" for _ in models)]))
            lines += map(markdown_line, rows)
        return "\n".join(lines)
    widths = [max(len(row[column]) for row in [header, *(row for _, rows in body for row in rows)]) for column in range(len(header))]
    lines = [_aligned_line(header, widths), "-" * (sum(widths) + 2 * len(models))]
    for group, rows in body:
        lines += [_group_title(group), *(_aligned_line(row, widths) for row in rows)]
    return "\n".join([*lines, "* best of its row; ↓ lower is better, ↑ higher, → 50 nearer to half"])


def _build_row(row: MetricRow, models: Sequence[ModelRun]) -> TableRow:
    shown = [to_percent(read_metric(model, row.key)) for model in models]
    costs = [nearness(value, row.better) for value in shown]
    all_equal = len(set(costs)) == 1
    cells = tuple(TableCell(f"{value:.1f}", not all_equal and c == min(costs)) for value, c in zip(shown, costs, strict=True))
    return TableRow(row.label, ARROWS[row.better], cells)


def _count(model: ModelRun, benchmark: str) -> int:
    number = model.num_answers.get(benchmark, 0)
    if number < 1:
        raise UserError(f"{model.name} has {number} answers on {benchmark}; expected the number that its metrics come from")
    return number


def _group_title(group: TableGroup) -> str:
    counts = sorted(set(group.num_answers))
    return f"{group.title}, {' / '.join(f'{count:,}' for count in counts)} answers a model"


def _text_rows(group: TableGroup, *, markdown: bool) -> list[list[str]]:
    best, plain = ("**{}**", "{}") if markdown else ("{}*", "{} ")
    indent = "" if markdown else "  "
    return [
        [f"{indent}{row.label} {row.arrow}", *((best if cell.best else plain).format(cell.text) for cell in row.cells)]
        for row in group.rows
    ]


def _aligned_line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()


def markdown_line(row: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(row)} |"


def escape_pipe(text: str) -> str:
    """Keep a text inside its cell."""
    return text.replace("|", "\\|")

"""Which curves of the trainer's logs a page or a figure shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmalign.errors import UserError
from mmalign.reports.metric_names import describe_metric
from mmalign.reports.plots import DASHES, Curve, CurvePanel, draw_curves, model_colour, save_curves

# Quartiles are ordered: cool to warm.
QUARTILE_COLOURS = ("#1a9e77", "#3a86d4", "#8a63d2", "#d6447a")
QUARTILE_NAMES = ("easiest quarter", "second", "third", "hardest quarter")


@dataclass(frozen=True)
class TrainingRun:
    """A run's log, as ``train_log.json`` holds it, and the method that it trained with."""

    name: str
    log: Sequence[Mapping[str, Any]]
    method: str = "training"


@dataclass(frozen=True)
class Measure:
    """A logged metric as it is drawn."""

    key: str
    title: str
    y_label: str


QUARTILE_MEASURES = (
    Measure("rewards/margin", "margin by difficulty", "reward margin"),
    Measure("rewards/accuracy", "accuracy by difficulty", "chosen above rejected"),
)
# Drawn first, with names of their own; every other metric of a log follows under its key.
_MEASURES = (
    Measure("rewards/margin", "Reward margin, chosen - rejected", "margin"),
    Measure("rewards/accuracy", "Pairs with chosen above rejected", "share"),
)
# A loss of one method is not on the scale of another's.
_LOSS_UNITS = {"sft": "nats per token", "mimic": "nats per token", "preference": "nats per pair", "contrastive": "nats per image"}


def draw_training(runs: Sequence[TrainingRun], *, smooth: int = 1) -> list[Markup]:
    """Draw what the logs hold: losses by method, reward margin and accuracy, both by quartile of difficulty, then every other metric.

    The quartile drawings of a metric share the range of their values, so that the runs can be compared by eye.
    """
    units = {method: _LOSS_UNITS.get(method, "loss") for method in dict.fromkeys(run.method for run in runs)}
    losses = [_draw(runs, Measure("loss", f"Loss of train {method}", unit), smooth, method=method) for method, unit in units.items()]
    first = [_draw(runs, measure, smooth) for measure in _MEASURES]
    rest = [_draw(runs, Measure(key, *_describe(key)), smooth) for key in _other_keys(runs)]
    return [plot for plot in (*losses, *first, *_draw_quartiles(runs, smooth), *rest) if plot is not None]


def read_points(log: Sequence[Mapping[str, Any]], key: str, *, smooth: int = 1) -> list[tuple[float, float]]:
    """Return (step, value) of each log entry that has the key, each value the mean of the last ``smooth`` ones."""
    entries = [entry for entry in log if key in entry and "step" in entry]
    values = [float(entry[key]) for entry in entries]
    windows = [values[max(0, end - smooth) : end] for end in range(1, len(values) + 1)]
    return [(float(entry["step"]), sum(window) / len(window)) for entry, window in zip(entries, windows, strict=True)]


def quartile_curves(run: TrainingRun, key: str, *, smooth: int = 1) -> list[Curve]:
    """Read a metric's four curves, easiest quarter first; empty where it isn't logged."""
    points = [read_points(run.log, f"{key}_q{number}", smooth=smooth) for number in range(1, len(QUARTILE_NAMES) + 1)]
    return [Curve(name, p, colour) for name, p, colour in zip(QUARTILE_NAMES, points, QUARTILE_COLOURS, strict=True) if p]


def save_quartile_figure(out: Path, runs: Sequence[TrainingRun], *, smooth: int) -> None:
    """Save reward margin and accuracy by quartile of difficulty: a column per run, a row per measure, each row on one scale.

    Raises:
        ValueError: If a run has not logged them.
    """
    rows = []
    for measure in QUARTILE_MEASURES:
        curves = {run.name: quartile_curves(run, measure.key, smooth=smooth) for run in runs}
        missing = [name for name, found in curves.items() if not found]
        if missing:
            raise UserError(f"{missing[0]} has logged no {measure.key}_q1; expected a run of train preference on scored.parquet")
        rows.append([CurvePanel(f"{name}: {measure.title}", measure.y_label, found) for name, found in curves.items()])
    out.parent.mkdir(parents=True, exist_ok=True)
    save_curves(out, rows)


def _draw(runs: Sequence[TrainingRun], measure: Measure, smooth: int, *, method: str | None = None) -> Markup | None:
    curves = []
    for index, run in enumerate(runs):
        # Scores are not noisy in the way of a batch.
        points = read_points(run.log, measure.key, smooth=1 if measure.key.startswith("eval/") else smooth)
        if points and method in (None, run.method):
            curves.append(Curve(run.name, points, model_colour(index), DASHES[index % len(DASHES)]))
    name = f"{measure.key}-{method or 'all'}"
    return draw_curves(curves, name=name, title=measure.title, y_label=measure.y_label) if curves else None


def _draw_quartiles(runs: Sequence[TrainingRun], smooth: int) -> list[Markup]:
    plots = []
    for measure in QUARTILE_MEASURES:
        drawings = {index: quartile_curves(run, measure.key, smooth=smooth) for index, run in enumerate(runs)}
        values = [value for curves in drawings.values() for curve in curves for _, value in curve.points]
        for index, curves in drawings.items():
            if curves:
                title, name = f"{runs[index].name}: {measure.title}", f"quartiles-{measure.key}-{index}"
                limits = (min(values), max(values))
                plots.append(draw_curves(curves, name=name, title=title, y_label=measure.y_label, y_limits=limits))
    return plots


def _other_keys(runs: Sequence[TrainingRun]) -> list[str]:
    """What is not drawn yet: ``group/name`` as methods log it, and a benchmark's own choice of its scores."""
    keys: dict[str, None] = {}
    for run in runs:
        logged = dict.fromkeys(key for entry in run.log for key in entry if "/" in key)
        # A loss of one term is that term.
        is_single = sum(key.startswith("loss/") for key in logged) == 1
        keys |= {key: None for key in logged if not (is_single and key.startswith("loss/"))}
    drawn = {measure.key for measure in _MEASURES} | {f"{m.key}_q{n}" for m in QUARTILE_MEASURES for n in range(1, 5)}
    return [key for key in keys if key not in drawn and (not key.startswith("eval/") or _is_drawn_score(key))]


def _is_drawn_score(key: str) -> bool:
    score = key.removeprefix("eval/")
    return score.count("/") == 1 and describe_metric(score).drawn


def _describe(key: str) -> tuple[str, str]:
    """Title and label of the value."""
    if key.startswith("eval/"):
        score = key.removeprefix("eval/")
        return f"{score.split('/')[0]}: {describe_metric(score).label}", "value"
    group, _, name = key.partition("/")
    return f"{group.replace('_', ' ').capitalize()}: {name.replace('_', ' ')}", name.replace("_", " ")

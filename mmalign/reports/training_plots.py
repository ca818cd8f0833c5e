"""Which curves of the trainer's logs a page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmalign.errors import UserError
from mmalign.reports.plots import DASHES, Curve, CurvePanel, draw_curves, model_colour, save_curves
from mmalign.reports.results_table import ModelRun

# Quartiles are ordered: cool to warm.
QUARTILE_COLOURS = ("#1a9e77", "#3a86d4", "#8a63d2", "#d6447a")


@dataclass(frozen=True)
class QuartileMeasure:
    """A metric that is logged by quartile of difficulty."""

    name: str
    key: str
    title: str
    y_label: str


QUARTILE_MEASURES = (
    QuartileMeasure("margin", "rewards/margin", "margin by difficulty", "reward margin"),
    QuartileMeasure("accuracy", "rewards/accuracy", "accuracy by difficulty", "chosen above rejected"),
)
QUARTILE_NAMES = ("easiest quarter", "second", "third", "hardest quarter")


def draw_training(models: Sequence[ModelRun]) -> list[Markup]:
    """Draw what the logs hold: losses, reward margin and accuracy, and each model's margin and accuracy by quartile of difficulty.

    The quartile drawings share the range of their values, so that the models can be compared by eye.
    """
    has_rewards = [bool(read_points(model.log_history, "rewards/margin")) for model in models]
    # A loss of SFT is per token and one of DPO per pair: a common axis would compare them.
    tuned = {index: model for index, model in enumerate(models) if not has_rewards[index]}
    aligned = {index: model for index, model in enumerate(models) if has_rewards[index]}
    plots = [
        _draw_key(tuned, "loss", name="loss-sft", title="Supervised fine-tuning: loss", y_label="nats a token"),
        _draw_key(aligned, "loss", name="loss-dpo", title="Preference training: loss", y_label="nats a pair"),
        _draw_key(aligned, "rewards/margin", name="margin", title="Reward margin, chosen - rejected", y_label="margin"),
        _draw_key(aligned, "rewards/accuracy", name="accuracy", title="Pairs with chosen above rejected", y_label="share"),
        *_draw_quartiles(aligned),
    ]
    return [plot for plot in plots if plot is not None]


def read_points(log_history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of each log entry that has the key."""
    return [(float(entry["step"]), float(entry[key])) for entry in log_history if key in entry and "step" in entry]


def _draw_key(models: Mapping[int, ModelRun], key: str, *, name: str, title: str, y_label: str) -> Markup | None:
    curves = []
    for index, model in models.items():
        points = read_points(model.log_history, key)
        if points:
            curves.append(Curve(model.name, points, model_colour(index), DASHES[index % len(DASHES)]))
    if not curves:
        return None
    return draw_curves(curves, name=name, title=title, y_label=y_label, alt=_describe(title, curves))


def _draw_quartiles(models: Mapping[int, ModelRun]) -> list[Markup]:
    plots = []
    for measure in QUARTILE_MEASURES:
        drawings = {index: quartile_curves(model, measure.key) for index, model in models.items()}
        values = [value for curves in drawings.values() for curve in curves for _, value in curve.points]
        for index, curves in drawings.items():
            if not curves:
                continue
            title = f"{models[index].name}: {measure.title}"
            name, limits = f"quartiles-{measure.name}-{index}", (min(values), max(values))
            alt = _describe(title, curves)
            plots.append(draw_curves(curves, name=name, title=title, y_label=measure.y_label, alt=alt, y_limits=limits))
    return plots


def quartile_curves(model: ModelRun, key: str, *, smooth: int = 1) -> list[Curve]:
    """Read a metric's four curves, easiest quarter first, each point the mean of the last ``smooth`` ones; empty where it isn't logged."""
    points = [read_points(model.log_history, f"{key}_q{number}") for number in range(1, len(QUARTILE_NAMES) + 1)]
    return [
        Curve(name, smooth_points(p, smooth), colour) for name, p, colour in zip(QUARTILE_NAMES, points, QUARTILE_COLOURS, strict=True) if p
    ]


def smooth_points(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Replace each value by the mean of it and of those before it, ``window`` at most."""
    values = [value for _, value in points]
    means = [sum(part) / len(part) for part in (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def save_quartile_figure(out: Path, models: Sequence[ModelRun], *, smooth: int) -> None:
    """Save reward margin and accuracy by quartile of difficulty: a column a run, a row a measure, each row on one scale.

    Raises:
        ValueError: If a run has not logged them, or ``out`` is neither PNG nor SVG.
    """
    if out.suffix not in (".png", ".svg"):
        raise UserError(f"the figure is to be {out.name}; expected a name that ends in .png or .svg")
    if smooth < 1:
        raise UserError(f"smooth is {smooth}; expected a number of logs from 1")
    rows = []
    for measure in QUARTILE_MEASURES:
        curves = {model.name: quartile_curves(model, measure.key, smooth=smooth) for model in models}
        missing = [name for name, found in curves.items() if not found]
        if missing:
            raise UserError(f"{missing[0]} has logged no {measure.key}_q1; expected a run of train preference on scored.parquet")
        rows.append([CurvePanel(f"{name}: {measure.title}", measure.y_label, found) for name, found in curves.items()])
    out.parent.mkdir(parents=True, exist_ok=True)
    save_curves(out, rows)


def _describe(title: str, curves: Sequence[Curve]) -> str:
    parts = [f"{curve.name} from {curve.points[0][1]:.3g} to {curve.points[-1][1]:.3g}" for curve in curves]
    return f"{title}, by training step: {'; '.join(parts)}."

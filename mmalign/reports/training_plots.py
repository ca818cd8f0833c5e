"""Which curves of the trainer's logs a page shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmalign.reports.plots import DASHES, Curve, draw_curves, model_colour
from mmalign.reports.results_table import ModelRun

# Quartiles are ordered: cool to warm.
QUARTILE_COLOURS = ("#1a9e77", "#3a86d4", "#8a63d2", "#d6447a")
QUARTILE_NAMES = ("easiest quarter", "second", "third", "hardest quarter")


def draw_training(models: Sequence[ModelRun]) -> list[Markup]:
    """Draw what the logs hold: losses, reward margin and accuracy, and each model's margin by quartile of difficulty.

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
    drawings = {}
    for index, model in models.items():
        points = [read_points(model.log_history, f"rewards/margin_q{number}") for number in range(1, len(QUARTILE_NAMES) + 1)]
        curves = [Curve(*part) for part in zip(QUARTILE_NAMES, points, QUARTILE_COLOURS, strict=True) if part[1]]
        if curves:
            drawings[index] = curves
    values = [value for curves in drawings.values() for curve in curves for _, value in curve.points]
    plots = []
    for index, curves in drawings.items():
        title = f"{models[index].name}: margin by difficulty"
        limits = (min(values), max(values))
        alt = _describe(title, curves)
        plots.append(draw_curves(curves, name=f"quartiles-{index}", title=title, y_label="margin", alt=alt, y_limits=limits))
    return plots


def _describe(title: str, curves: Sequence[Curve]) -> str:
    parts = [f"{curve.name} from {curve.points[0][1]:.3g} to {curve.points[-1][1]:.3g}" for curve in curves]
    return f"{title}, by training step: {'; '.join(parts)}."

"""A diagnosis (``mmalign diagnose``) as one HTML file that asks nothing of the network: paths, counters, credit, traces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmalign.reports.page import render_page
from mmalign.reports.plots import DASHES, Bar, Curve, draw_bars, draw_curves, draw_histogram, model_colour
from mmalign.reports.training_plots import read_points

CHOSEN, REJECTED = model_colour(1), model_colour(2)
SETS = {"pairs": "pairs", "held_out": "held-out pairs"}
LOGGED = (
    ("logps/chosen_per_token", "logps/rejected_per_token", "log p per token, in training", "nats per token"),
    ("rewards/chosen", "rewards/rejected", "Implicit reward, in training", "reward"),
)


@dataclass(frozen=True)
class CreditedPair:
    """A pair whose tokens are coloured by their credit.

    Attributes:
        id: Of the pair.
        prompt: What was asked.
        image: Its address (``make_thumbnail``), or None for a prompt without one.
        chosen: Pieces of the text with their credits, in order.
        rejected: The same of the rejected response.
    """

    id: str
    prompt: str
    image: str | None
    chosen: Sequence[tuple[str, float]]
    rejected: Sequence[tuple[str, float]]


def write_diagnosis_page(
    out: Path, *, title: str, diagnosis: Mapping[str, Any], credited: Sequence[CreditedPair], facts: Mapping[str, str]
) -> Path:
    """Write the page; equal arguments give equal bytes, and every text in them is shown as text.

    Args:
        out: The HTML file.
        title: Of the page.
        diagnosis: As ``diagnosis.json`` holds it.
        credited: Pairs to draw the credit over.
        facts: How it was made: name -> value, in this order.

    Returns:
        ``out``.
    """
    filters = {
        "percent": lambda value: "–" if value is None else f"{value:.1%}",  # noqa: RUF001
        "signed": lambda value: f"{value:+.3f}",
    }
    scale = max((abs(credit) for pair in credited for side in (pair.chosen, pair.rejected) for _, credit in side), default=0.0)
    return render_page(
        out,
        "diagnosis_page.html.j2",
        filters=filters,
        title=title,
        diagnosis=diagnosis,
        sets={key: name for key, name in SETS.items() if key in diagnosis["movement"]},
        paths=[*_draw_log(diagnosis["training_log"]), *_draw_paths(diagnosis["paths"])],
        moved=[_draw_moved(name, diagnosis["per_token"][key], key) for key, name in SETS.items() if key in diagnosis["per_token"]],
        separability=_draw_separability(diagnosis["separability"]) if diagnosis["separability"] else None,
        layers=_draw_layers(diagnosis["layers"]) if diagnosis["layers"] else [],
        credited=[_show_pair(pair, scale) for pair in credited],
        scale=scale,
        facts=facts,
    )


def _draw_log(log: Sequence[Mapping[str, float]]) -> list[Markup]:
    plots = []
    for number, (chosen, rejected, title, unit) in enumerate(LOGGED):
        curves = []
        for name, key, colour, dash in (("chosen", chosen, CHOSEN, DASHES[0]), ("rejected", rejected, REJECTED, DASHES[1])):
            points = read_points(log, key)
            curves += [Curve(name, points, colour, dash)] if points else []
        if curves:
            plots.append(draw_curves(curves, name=f"log-{number}", title=title, y_label=unit))
    return plots


def _draw_paths(paths: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Log-ratios over the checkpoints, those of held-out pairs on the same scale."""
    plots = []
    present = [key for key in SETS if all(key in point for point in paths)]
    values = [point[key][side] for key in present for point in paths for side in ("chosen_per_token", "rejected_per_token")]
    for key in present:
        curves = []
        for side, colour, dash in (("chosen", CHOSEN, DASHES[0]), ("rejected", REJECTED, DASHES[1])):
            points = [(float(point["step"]), float(point[key][f"{side}_per_token"])) for point in paths]
            curves.append(Curve(side, points, colour, dash))
        title, limits = f"Moved since the start: {SETS[key]}", (min(values), max(values))
        plots.append(draw_curves(curves, name=f"path-{key}", title=title, y_label="h, nats per token", y_limits=limits))
    return plots


def _draw_moved(name: str, pairs: Sequence[Sequence[float]], key: str) -> Markup:
    chosen, rejected = ([pair[side] for pair in pairs] for side in (0, 1))
    low, high = min(0.0, *chosen, *rejected), max(0.0, *chosen, *rejected)
    pad = 0.02 * (high - low) or 0.1
    title = f"h of {name}"
    groups = {"chosen": chosen, "rejected": rejected}
    ranges = [f"{side} from {min(values):.3g} to {max(values):.3g}" for side, values in groups.items()]
    alt = f"{title}: {', '.join(ranges)} nats per token."
    return draw_histogram(
        groups, name=f"moved-{key}", title=title, x_label="nats per token", alt=alt, limits=(low - pad, high + pad), stacked=False
    )


def _draw_separability(probes: Mapping[str, Mapping[str, float]]) -> Markup:
    bars = {name: [Bar(100 * probe["accuracy"], 100 * probe["low"], 100 * probe["high"])] for name, probe in probes.items()}
    values = "; ".join(f"{name} {probe['accuracy']:.1%}" for name, probe in probes.items())
    title = "Chosen told from rejected by"
    return draw_bars(bars, ["linear probe, 5-fold"], name="separability", title=title, x_label="percent right; 50 is guessing", alt=values)


def _draw_layers(layers: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Markup]:
    plots = []
    for key, title, unit, first in (
        ("exponent", "Spectral exponent by layer", "alpha", 1),
        ("length", "Fisher-Rao step to the next layer", "radians", 1),
    ):
        curves = [
            Curve(name, [(float(first + i), float(v)) for i, v in enumerate(trace[key])], model_colour(index), DASHES[index])
            for index, (name, trace) in enumerate(layers.items())
            if trace[key]
        ]
        if curves:
            plots.append(draw_curves(curves, name=f"layers-{key}", title=title, y_label=unit, x_label="layer"))
    return plots


def _show_pair(pair: CreditedPair, scale: float) -> dict[str, Any]:
    sides = [
        (name, colour, sum(credit for _, credit in side), [_show_token(text, credit, scale) for text, credit in side])
        for name, colour, side in (("chosen", CHOSEN, pair.chosen), ("rejected", REJECTED, pair.rejected))
    ]
    return {"id": pair.id, "prompt": pair.prompt, "image": pair.image, "sides": sides}


def _show_token(text: str, credit: float, scale: float) -> tuple[str, str, int, str]:
    """Text, what colours it, how strongly in percent, and the credit in words."""
    strength = round(100 * abs(credit) / scale) if scale else 0
    return text, "more" if credit > 0 else "less", strength, f"{credit:+.3f}"

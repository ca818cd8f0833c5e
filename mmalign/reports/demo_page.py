"""The demo's page: one HTML file that asks nothing of the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.reports.difficulty_summary import GRADES, DifficultySummary, compute_ordering, split_by_grade
from mmalign.reports.gallery import GalleryItem, check_gallery, cut_caption, to_data_uri
from mmalign.reports.headline import write_headline, write_verdicts
from mmalign.reports.page import render_page
from mmalign.reports.plots import draw_histogram, model_colour
from mmalign.reports.results_table import ModelRun, build_table, read_metric, to_percent
from mmalign.reports.training_plots import draw_training


def write_demo_page(
    out: Path,
    *,
    title: str,
    models: Sequence[ModelRun],
    difficulty: DifficultySummary,
    gallery: Sequence[GalleryItem],
    facts: Mapping[str, str],
    gallery_note: str = "",
) -> Path:
    """Write the page; equal arguments give equal bytes.

    Args:
        out: The HTML file.
        title: Of the page.
        models: The starting point first, then what was trained from it.
        difficulty: The pairs' scores.
        gallery: Images with captions.
        facts: How it was made: name -> value, in this order.
        gallery_note: How the gallery's images were chosen.

    Returns:
        ``out``.

    Raises:
        ValueError: If a metric, a caption or a count is missing, or a value is out of range.
    """
    names = [model.name for model in models]
    groups = build_table(models)
    check_gallery(gallery, names=names)
    return render_page(
        out,
        "demo_page.html.j2",
        title=title,
        names=names,
        headline=write_headline(models),
        verdicts=write_verdicts(models),
        tiles=_build_tiles(models),
        groups=groups,
        training_plots=draw_training(models),
        difficulty=_describe_difficulty(difficulty),
        gallery=[_show_item(item, number, names) for number, item in enumerate(gallery, start=1)],
        gallery_note=gallery_note,
        facts=facts,
    )


@dataclass(frozen=True)
class Tile:
    """A model's two numbers at the top of the page, in percent."""

    name: str
    hallucinated: str
    coverage: str
    colour: str


def _build_tiles(models: Sequence[ModelRun]) -> list[Tile]:
    return [
        Tile(
            model.name,
            f"{to_percent(read_metric(model, 'chair/sentence')):.1f}",
            f"{to_percent(read_metric(model, 'chair/recall')):.1f}",
            model_colour(index),
        )
        for index, model in enumerate(models)
    ]


def _describe_difficulty(summary: DifficultySummary) -> dict[str, Any]:
    groups = split_by_grade(summary)
    means = {grade: sum(values) / max(1, len(values)) for grade, values in groups.items()}
    ordering = to_percent(compute_ordering(groups["easy"], groups["hard"]))
    text = f"A random hard pair scores above a random easy one in {ordering:.1f}% of cases (50% would be chance). Mean difficulty: "
    text += " and ".join(f"{means[grade]:.2f} of {len(groups[grade]):,} {grade} pairs" for grade in GRADES) + "."
    plot = draw_histogram(
        {f"meant {grade}": values for grade, values in groups.items()},
        name="difficulty",
        title="Scored difficulty, by true grade",
        x_label="difficulty (1 = hard)",
        alt=f"Histogram of difficulty. {text}",
    )
    proxies = [{"name": p.name, "accuracy": f"{100 * p.accuracy:.1f}", "weight": f"{p.weight:.3f}"} for p in summary.proxies]
    return {"text": text, "plot": plot, "proxies": proxies}


def _show_item(item: GalleryItem, number: int, names: Sequence[str]) -> dict[str, Any]:
    return {
        "uri": to_data_uri(item.image),
        "alt": f"Scene {number}: {', '.join(item.truth) or 'nothing'}",
        "truth": item.truth,
        "question": item.question,
        "captions": [(name, model_colour(index), cut_caption(item.captions[name])) for index, name in enumerate(names)],
    }

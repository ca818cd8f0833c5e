"""Several models' results as one HTML file that asks nothing of the network: table, bars with intervals, wrong answers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmalign.reports.comparison import Cell, EvalRun, Group, Row, build_comparison, scale_value
from mmalign.reports.findings import write_findings, write_headline
from mmalign.reports.gallery import Caption, Piece, cut_caption
from mmalign.reports.page import render_page
from mmalign.reports.plots import Bar, draw_bars, model_colour


@dataclass(frozen=True)
class Reply:
    """What a model said to a question; ``correct`` is None where the benchmark doesn't say."""

    caption: Caption
    correct: bool | None


@dataclass(frozen=True, kw_only=True)
class AskedQuestion:
    """A question that a model answered wrongly.

    Attributes:
        id: Of the question.
        question: What was asked.
        label: What would have been right.
        group: The split or category, or empty.
        image: Its address (``make_thumbnail``), or None where it is not at hand.
        image_name: Its name.
        replies: Model name -> reply, of those that answered.
    """

    id: str
    question: str
    label: str
    group: str
    image: str | None
    image_name: str
    replies: Mapping[str, Reply]


@dataclass(frozen=True)
class WrongAnswers:
    """Some of a benchmark's questions that were answered wrongly, and how many there are by model."""

    shown: Sequence[AskedQuestion]
    counts: Mapping[str, int]


def write_eval_page(
    out: Path,
    *,
    title: str,
    runs: Sequence[EvalRun],
    wrong: Mapping[str, WrongAnswers],
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
    links: Sequence[Path] = (),
) -> Path:
    """Write the page; equal arguments give equal bytes, and every text in them is shown as text.

    Args:
        out: The HTML file.
        title: Of the page.
        runs: The models; differences are from the first.
        wrong: Benchmark -> wrong answers.
        facts: How it was made: name -> value, in this order.
        notes: What a reader has to know before comparing.
        links: Other pages to name above the results.

    Returns:
        ``out``.

    Raises:
        ValueError: If there are no models, or names repeat.
    """
    names = [run.name for run in runs]
    groups = build_comparison(runs)
    return render_page(
        out,
        "eval_page.html.j2",
        title=title,
        headline=write_headline(groups, names),
        findings=write_findings(groups, runs),
        links=[(path.stem.replace("_", " ").capitalize(), os.path.relpath(path, out.parent)) for path in links],
        models=[(name, model_colour(index)) for index, name in enumerate(names)],
        groups=groups,
        has_intervals=any(run.intervals for run in runs),
        plots=[plot for group in groups for plot in _draw_group(group, runs)],
        wrong=[_show_benchmark(group, wrong[group.benchmark], names) for group in groups if group.benchmark in wrong],
        facts=facts,
        notes=notes,
    )


def _draw_group(group: Group, runs: Sequence[EvalRun]) -> list[Markup]:
    """What is in percent together on one scale, each other number on its own."""
    drawn = [row for row in group.rows if row.info.drawn and row.is_whole]
    percents = [row for row in drawn if row.info.unit != "number"]
    sets = ([percents] if percents else []) + [[row] for row in drawn if row.info.unit == "number"]
    return [_draw_rows(rows, group, runs, name=f"bars-{group.benchmark}-{number}") for number, rows in enumerate(sets)]


def _draw_rows(rows: Sequence[Row], group: Group, runs: Sequence[EvalRun], *, name: str) -> Markup:
    bars = {row.label: [_bar(run, row) for run in runs] for row in rows}
    values = [f"{row.info.label}: {'; '.join(_words(run, cell) for run, cell in zip(runs, row.cells, strict=True))}" for row in rows]
    unit = "value" if rows[0].info.unit == "number" else "percent"
    return draw_bars(
        bars, [run.name for run in runs], name=name, title=group.title, x_label=unit, alt=f"{group.title}, {unit}. {'. '.join(values)}."
    )


def _words(run: EvalRun, cell: Cell) -> str:
    return f"{run.name} {cell.text}" + (f" ({cell.interval})" if cell.interval else "")


def _bar(run: EvalRun, row: Row) -> Bar | None:
    if row.key not in run.metrics:
        return None
    interval = run.intervals.get(row.key)
    value = scale_value(run.metrics[row.key], row.info)
    return Bar(value) if interval is None else Bar(value, scale_value(interval.low, row.info), scale_value(interval.high, row.info))


def _show_benchmark(group: Group, wrong: WrongAnswers, names: Sequence[str]) -> dict[str, Any]:
    return {
        "id": f"wrong-{group.benchmark}",
        "title": group.title,
        "num_shown": len(wrong.shown),
        "counts": [(name, wrong.counts.get(name, 0)) for name in names],
        "questions": [_show_question(question, names) for question in wrong.shown],
    }


def _show_question(question: AskedQuestion, names: Sequence[str]) -> dict[str, Any]:
    replies: list[tuple[str, str, list[Piece], bool | None]] = []
    for index, name in enumerate(names):
        if name in question.replies:
            reply = question.replies[name]
            replies.append((name, model_colour(index), cut_caption(reply.caption), reply.correct))
    wrong_models = [index for index, name in enumerate(names) if name in question.replies and question.replies[name].correct is False]
    return {
        "id": question.id,
        "group": question.group,
        "question": question.question,
        "label": question.label,
        "image": question.image,
        "image_name": question.image_name,
        "wrong_models": wrong_models,
        "replies": replies,
    }

"""The page of the objectives study: a table per data set, from the finished runs."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.objectives_grid import GROUPS, Group, count_steps, read_search
from scripts.studies.study import slug
from scripts.studies.world import BATCH, headings, read_metrics

COLUMNS = headings("object F1", "CHAIR_i", "hallucinated", "coverage", "POPE F1", "yes", "words") | {"KL": "KL, nats"}
OVERVIEW = ("object F1", "POPE F1")
BASELINE = "dpo"
# Of up to four data sets: a colour for each two, hollow where labels are wrong.
MARKERS = (("#3a86d4", True), ("#3a86d4", False), ("#d9730d", True), ("#d9730d", False))
ABOUT = """All train the same SFT model for {steps} steps of {batch} pairs or lists, each with the strength and the learning rate
that a search of its own found best; the search has as many runs for every objective, on other data and scenes than these
tables.
Object F1 is the harmonic mean of precision (100 - CHAIR_i) and coverage of captions. KL is KL(policy, start) of a sampled
caption. Means over seeds with 95% intervals (Student's t); differences from DPO are paired by seed, with the p-value of the
t-test and no correction for looking at many. A seed draws the data and the order of batches; the start is one. Scores of
`madpo`, `dno`, `smpo`, `adpo_pair` and visits of `step_dpo` come from the CLIP scorer. Sampled lists are up to four different
responses that the start gives to a new scene, scored by the truth; there `dpo` and `orpo` train on the best against the worst."""


def _ranked(*by_data: page.Runs) -> list[str]:
    """Objectives that all data sets have, the best mean object F1 first."""
    names = [name for name in by_data[0] if all(name in runs for runs in by_data)]
    return sorted(names, key=lambda name: -sum(page.estimate_metric(runs[name], "object F1").mean for runs in by_data))


def data_table(runs: page.Runs, sft: page.Metrics) -> str:
    """Lay out objectives by metrics, the best object F1 first; then the difference from DPO, and the time of a step by DPO's."""
    rows = [[*page.start_row("SFT (the start)", {**sft, "KL": 0.0}, COLUMNS), "", ""]]
    base = runs.get(BASELINE, {})
    for name, row in page.arm_rows(runs, {name: name for name in _ranked(runs)}, COLUMNS).items():
        shared = set(runs[name]) & set(base)
        difference = page.compare_metric(runs[name], base, "object F1") if shared and name != BASELINE else ""
        mine, other = (sum(seeds[seed]["seconds a step"] for seed in shared) for seeds in (runs[name], base))
        rows.append([*row, difference, f"{mine / other:.2f}" if shared else ""])
    return markdown_table(["objective", "seeds", *COLUMNS.values(), "object F1 - dpo's", "time a step / dpo's"], rows)


def overview_table(by_data: Mapping[str, page.Runs], sft: page.Metrics) -> str:
    """Lay out object F1 / POPE F1 by data set; objectives that all data sets have, the best mean object F1 first."""
    rows: list[list[object]] = [["SFT (the start)", *[" / ".join(f"{sft[key]:.1f}" for key in OVERVIEW)] * len(by_data)]]
    for name in _ranked(*by_data.values()):
        pairs = ([page.estimate_metric(runs[name], key).mean for key in OVERVIEW] for runs in by_data.values())
        rows.append([name, *(f"{f1:.1f} / {pope:.1f}" for f1, pope in pairs)])
    return markdown_table(["objective", *by_data], rows)


def search_table(group: Group, out: Path) -> str:
    """Lay out the search: by strength one number per learning rate, in the order of the grid, the best in bold; empty if none is there."""
    searches = {(one.name, one.parameter): scores for one in group.grid if (scores := read_search(group, one, out))}
    if not searches:
        return ""
    rates = " and ".join(page.learning_rates(searches.values()))
    about = f"Object F1 on 100 validation scenes after training, one seed; learning rates {rates}."
    return f"{about}\n\n{page.search_table(searches, name='objective')}"


def draw_overview(groups: Sequence[Mapping[str, page.Runs]], sft: page.Metrics, path: Path) -> None:
    """Draw object F1 and POPE F1 of each objective, a marker per data set with its 95% interval: a row of panels per group."""
    ranked = [_ranked(*group.values()) for group in groups]
    with page.drawing(path, (11, 1.6 * len(groups) + 0.34 * sum(map(len, ranked)))) as figure:
        panels = figure.subplots(len(groups), 2, squeeze=False, height_ratios=[len(names) + 2 for names in ranked])
        for row, group, names in zip(panels, groups, ranked, strict=True):
            for axes, key in zip(row, OVERVIEW, strict=True):
                _draw_panel(axes, group, names, key, start=sft[key])
            row[0].set_yticks(range(len(names)), names, fontsize=8)
            legend = row[0].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=5)
            # It is wider than its panel, which would be shrunk for it; an empty title keeps its place.
            legend.set_in_layout(False)
            row[0].set_title(" ", fontsize=12)


def _draw_panel(axes: Axes, group: Mapping[str, page.Runs], names: Sequence[str], key: str, *, start: float) -> None:
    """Draw one metric of a group's objectives; the names are left to the caller."""
    axes.axvline(start, color=page.GREY, linestyle="--", linewidth=1, label="SFT")
    means = [start]
    for number, ((name, runs), (colour, filled)) in enumerate(zip(group.items(), MARKERS, strict=False)):
        estimates = [page.estimate_metric(runs[objective], key) for objective in names]
        means += [one.mean for one in estimates]
        places = [place + 0.17 * (number - (len(group) - 1) / 2) for place in range(len(names))]
        axes.errorbar(
            [one.mean for one in estimates], places, xerr=[one.half_width for one in estimates], fmt="o", color=colour,
            markerfacecolor=colour if filled else "white", markersize=4.5, elinewidth=0.8, alpha=0.9, label=name,
        )  # fmt: skip
    # An interval of a run that fell apart is not what the axis is for.
    axes.set_xlim(min(means) - 3, max(means) + 3)
    axes.set_yticks(range(len(names)), [])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"{COLUMNS[key].removesuffix(' ↑')}, more is better", fontsize=9)


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of ``objectives.md`` and its picture; data sets and searches without a finished run are left out."""
    out, folder = options.out, options.report
    sft = read_metrics(out / "cells" / "sft.json")
    parts = [
        "```\npython -m scripts.studies.objectives --out runs/studies/objectives --processes 2 --report docs/studies\n```",
        ABOUT.format(steps=count_steps(quick=options.quick, smoke=options.smoke), batch=BATCH),
    ]
    read = partial(page.read_runs, read=read_metrics)
    found = [{one.name: runs for one in group.data if (runs := read(out / "cells" / slug(one.name)))} for group in GROUPS]
    if any(found):
        draw_overview([by_data for by_data in found if by_data], sft, folder / "objectives_overview.png")
        parts += ["![object F1 and POPE F1 of each objective](objectives_overview.png)"]
    for group, by_data in zip(GROUPS, found, strict=True):
        if by_data:
            parts += [f"## {group.title}: object F1 / POPE F1", overview_table(by_data, sft)]
        for one in group.data:
            if one.name in by_data:
                parts += [f"### {one.heading[0].upper()}{one.heading[1:]}", data_table(by_data[one.name], sft)]
    for group in GROUPS:
        if table := search_table(group, out):
            parts += [f"## The search on {group.data[0].heading}", table]
    return page.write_measured(folder / "objectives.md", "Preference objectives on the embedded world", parts)

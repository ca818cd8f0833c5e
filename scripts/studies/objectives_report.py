"""The page of the objectives study: a table a condition, from the finished runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.studies.measured_page import PLOT_STYLE, write_measured
from scripts.studies.seed_statistics import compare, estimate, markdown_table
from scripts.studies.world_start import read_json, slug

COLUMNS = {
    "object F1": "object F1 ↑",
    "CHAIR_i": "CHAIR_i % ↓",
    "hallucinated": "hallucinated captions % ↓",
    "coverage": "coverage % ↑",
    "POPE F1": "POPE F1 ↑",
    "yes": "yes % (true 50)",
    "words": "words",
    "KL": "KL, nats",
}
OVERVIEW = ("object F1", "POPE F1")
BASELINE = "dpo"
Runs = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Objective -> seed -> metrics."""
Search = tuple[str, str, Mapping[tuple[str, str], float]]
"""Of an objective: its name, the parameter that is its strength, and (strength, learning rate) -> object F1."""
# Markers of up to four conditions: a colour for each two, hollow where labels are wrong.
MARKERS = (("#3a86d4", True), ("#3a86d4", False), ("#d9730d", True), ("#d9730d", False))


@dataclass(frozen=True)
class Group:
    """Conditions whose objectives were searched together."""

    title: str
    conditions: Mapping[str, str]
    """Their names, and what the page calls them; the search was on the first."""
    searches: Sequence[Search]


def object_f1(metrics: Mapping[str, float]) -> float:
    """Harmonic mean of a caption's precision (100 - CHAIR_i) and coverage, in percent; 0 where nothing right is said."""
    precision, coverage = 100 - metrics["CHAIR_i"], metrics["coverage"]
    return 2 * precision * coverage / (precision + coverage) if precision + coverage > 0 else 0.0


def read_cells(out: Path, condition: str) -> dict[str, dict[int, dict[str, float]]]:
    """Read the finished runs of a condition: objective -> seed -> metrics."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for path in sorted((out / "cells" / condition).glob("*/*.json")):
        values = dict(read_json(path))
        found.setdefault(path.stem, {})[int(path.parent.name)] = values | {"object F1": object_f1(values)}
    return found


def condition_table(runs: Runs, sft: Mapping[str, float]) -> str:
    """Lay out objectives by metrics, the best object F1 first; then the difference from DPO, and the time of a step by DPO's."""
    start: list[object] = ["SFT (the start)", "", *(f"{sft[key]:.1f}" for key in COLUMNS if key != "KL"), "0.0", "", ""]
    rows = [start]
    order = sorted(runs, key=lambda name: -_mean(runs[name], "object F1"))
    base = runs.get(BASELINE, {})
    for name in order:
        values = runs[name]
        cells = [estimate([one[key] for one in values.values()]) for key in COLUMNS]
        shared = set(values) & set(base)
        difference: object = ""
        ratio = ""
        if name != BASELINE and shared:
            difference = compare({s: v["object F1"] for s, v in values.items()}, {s: v["object F1"] for s, v in base.items()})
        if shared:
            mine, other = (sum(part[seed]["seconds a step"] for seed in shared) for part in (values, base))
            ratio = f"{mine / other:.2f}"
        rows.append([name, len(values), *cells, difference, ratio])
    return markdown_table(["objective", "seeds", *COLUMNS.values(), "object F1 - dpo's", "time a step / dpo's"], rows)


def search_table(searches: Sequence[Search]) -> str:
    """Lay out the search: by strength one number a learning rate, in the order of the grid, the best in bold."""
    rates = _rates(searches)
    rows: list[list[object]] = []
    for name, parameter, scores in searches:
        if not scores:
            continue
        best = max(scores, key=lambda key: scores[key])
        shown = {key: f"**{score:.1f}**" if key == best else f"{score:.1f}" for key, score in scores.items()}
        values = sorted({value for value, _ in scores}, key=float)
        rows.append([name, parameter, *(f"{value}: {', '.join(shown.get((value, rate), '-') for rate in rates)}" for value in values)])
    strengths = max((len(row) - 2 for row in rows), default=0)
    return markdown_table(["objective", "strength", *[""] * strengths], rows)


def _rates(searches: Sequence[Search]) -> list[str]:
    return list(dict.fromkeys(rate for _, _, scores in searches for _, rate in scores))


def overview_table(by_condition: Mapping[str, Runs], sft: Mapping[str, float]) -> str:
    """Lay out object F1 / POPE F1 by condition; objectives that all conditions have, the best mean object F1 first."""
    rows: list[list[object]] = [["SFT (the start)", *[f"{sft['object F1']:.1f} / {sft['POPE F1']:.1f}"] * len(by_condition)]]
    for name in _ranked(by_condition):
        pairs = ([_mean(runs[name], key) for key in OVERVIEW] for runs in by_condition.values())
        rows.append([name, *(f"{f1:.1f} / {pope:.1f}" for f1, pope in pairs)])
    return markdown_table(["objective", *by_condition], rows)


def draw_overview(groups: Sequence[Mapping[str, Runs]], sft: Mapping[str, float], path: Path) -> None:
    """Draw object F1 and POPE F1 of each objective, a marker a condition with its 95% interval: a row of panels a group."""
    ranked = [_ranked(group) for group in groups]
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(11, 1.6 * len(groups) + 0.34 * sum(map(len, ranked))), layout="constrained")
        panels = figure.subplots(len(groups), 2, squeeze=False, height_ratios=[len(names) + 2 for names in ranked])
        for row, group, names in zip(panels, groups, ranked, strict=True):
            for axes, key in zip(row, OVERVIEW, strict=True):
                _draw_panel(axes, group, names, key, start=sft[key])
            row[0].set_yticks(range(len(names)), names, fontsize=8)
            legend = row[0].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=5)
            # It is wider than its panel, which would be shrunk for it; an empty title keeps its place.
            legend.set_in_layout(False)
            row[0].set_title(" ", fontsize=12)
        figure.savefig(path, dpi=130)


def _draw_panel(axes: Axes, group: Mapping[str, Runs], names: Sequence[str], key: str, *, start: float) -> None:
    """Draw one metric of a group's objectives; the names are left to the caller."""
    axes.axvline(start, color="#7d8590", linestyle="--", linewidth=1, label="SFT")
    means = [start]
    for number, ((condition, runs), (colour, filled)) in enumerate(zip(group.items(), MARKERS, strict=False)):
        estimates = [estimate([one[key] for one in runs[name].values()]) for name in names]
        means += [one.mean for one in estimates]
        places = [place + 0.17 * (number - (len(group) - 1) / 2) for place in range(len(names))]
        axes.errorbar(
            [one.mean for one in estimates], places, xerr=[one.half_width for one in estimates], fmt="o", color=colour,
            markerfacecolor=colour if filled else "white", markersize=4.5, elinewidth=0.8, alpha=0.9, label=condition,
        )  # fmt: skip
    # An interval of a run that fell apart is not what the axis is for.
    axes.set_xlim(min(means) - 3, max(means) + 3)
    axes.set_yticks(range(len(names)), [])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"{COLUMNS[key].removesuffix(' ↑')}, more is better", fontsize=9)


def _ranked(by_condition: Mapping[str, Runs]) -> list[str]:
    """Objectives that all conditions have, the best mean object F1 first."""
    names = set.intersection(*(set(runs) for runs in by_condition.values()))
    return sorted(names, key=lambda name: -sum(_mean(runs[name], "object F1") for runs in by_condition.values()))


def _mean(runs: Mapping[int, Mapping[str, float]], key: str) -> float:
    return estimate([one[key] for one in runs.values()]).mean


def write_report(
    out: Path,
    folder: Path,
    *,
    groups: Sequence[Group],
    steps: int,
    batch_size: int,
) -> Path:
    """Write the measured part of ``objectives.md`` from what is finished; text above the line ``<!-- measured -->`` is kept.

    Args:
        out: Folder of the study.
        folder: Where the page goes.
        groups: The data sets with their searches; a group without a finished run is left out.
        steps: Of each training.
        batch_size: Pairs a step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sft = dict(read_json(out / "cells" / "sft.json"))
    sft["object F1"] = object_f1(sft)
    parts = [
        "```\npython -m scripts.studies.objectives --out runs/studies/objectives --processes 2 --report docs/studies\n```",
        f"All train the same SFT model for {steps} steps of {batch_size} pairs or lists, each with the strength and the learning rate\n"
        "that a search of its own found best; the search has as many runs for every objective, on other data and scenes than these\n"
        "tables.\n"
        "Object F1 is the harmonic mean of precision (100 - CHAIR_i) and coverage of captions. KL is KL(policy, start) of a sampled\n"
        "caption. Means over seeds with 95% intervals (Student's t); differences from DPO are paired by seed, with the p-value of the\n"
        "t-test and no correction for looking at many. A seed draws the data and the order of batches; the start is one. Scores of\n"
        "`madpo`, `dno`, `smpo`, `adpo_pair` and visits of `step_dpo` come from the CLIP scorer. Sampled lists are up to four different\n"
        "responses that the start gives to a new scene, scored by the truth; there `dpo` and `orpo` train on the best against the worst.",
    ]
    finished = [{name: runs for name in group.conditions if (runs := read_cells(out, slug(name)))} for group in groups]
    if any(finished):
        draw_overview([runs for runs in finished if runs], sft, folder / "objectives_overview.png")
        parts += ["![object F1 and POPE F1 of each objective](objectives_overview.png)"]
    for group, by_condition in zip(groups, finished, strict=True):
        if by_condition:
            parts += [f"## {group.title}: object F1 / POPE F1", overview_table(by_condition, sft)]
        for condition, runs in by_condition.items():
            heading = group.conditions[condition]
            parts += [f"### {heading[0].upper()}{heading[1:]}", condition_table(runs, sft)]
    for group in groups:
        if any(scores for _, _, scores in group.searches):
            parts += [
                f"## The search on {next(iter(group.conditions.values()))}",
                f"Object F1 on 100 validation scenes after training, one seed; learning rates {' and '.join(_rates(group.searches))}.",
                search_table(group.searches),
            ]
    return write_measured(folder / "objectives.md", "Preference objectives on the embedded world", parts)

"""The page of the objectives study: a table a condition, from the finished runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
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
    "words": "words",
    "KL": "KL, nats",
}
BASELINE = "dpo"
Runs = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Objective -> seed -> metrics."""
Search = tuple[str, str, Mapping[tuple[str, str], float]]
"""Of an objective: its name, the parameter that is its strength, and (strength, learning rate) -> object F1."""
SearchTable = tuple[str, Sequence[Search]]
"""What was searched on, and the objectives' searches."""


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
    order = sorted(runs, key=lambda name: -estimate([one["object F1"] for one in runs[name].values()]).mean)
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


def draw_tradeoff(by_condition: Mapping[str, Runs], sft: Mapping[str, float], path: Path) -> None:
    """Draw hallucination against coverage, means over seeds: a panel a condition, a point an objective."""
    columns = min(2, len(by_condition))
    rows = -(-len(by_condition) // columns)
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(6.2 * columns, 4.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, (condition, runs) in zip(panels, by_condition.items(), strict=False):
            axes.scatter(sft["hallucinated"], sft["coverage"], color="#7d8590", s=110, marker="*")
            axes.annotate("SFT", (sft["hallucinated"], sft["coverage"]), textcoords="offset points", xytext=(6, 4), fontsize=8)
            for name, values in runs.items():
                x, y = (estimate([one[key] for one in values.values()]).mean for key in ("hallucinated", "coverage"))
                colour = "#d9730d" if name == BASELINE else "#3a86d4"
                axes.scatter(x, y, color=colour, s=26)
                axes.annotate(name, (x, y), textcoords="offset points", xytext=(4, 3), fontsize=7, color=colour)
            axes.set_title(condition, fontsize=10)
            axes.set_xlabel("hallucinated captions, %")
            axes.set_ylabel("coverage, %")
        figure.savefig(path, dpi=130)


def write_report(
    out: Path,
    folder: Path,
    *,
    conditions: Mapping[str, str],
    searches: Sequence[SearchTable],
    steps: int,
    batch_size: int,
) -> Path:
    """Write the measured part of ``objectives.md`` from what is finished; text above the line ``<!-- measured -->`` is kept.

    Args:
        out: Folder of the study.
        folder: Where the page goes.
        conditions: Names of the data sets, and what the page calls them.
        searches: Finished runs of the searches; one without any is left out.
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
    by_condition = {condition: runs for condition in conditions if (runs := read_cells(out, slug(condition)))}
    for condition, runs in by_condition.items():
        heading = conditions[condition]
        parts += [f"## {heading[0].upper()}{heading[1:]}", condition_table(runs, sft)]
    if by_condition:
        draw_tradeoff(by_condition, sft, folder / "objectives_tradeoff.png")
        parts += ["![hallucination against coverage](objectives_tradeoff.png)"]
    for searched, objectives in searches:
        if any(scores for _, _, scores in objectives):
            parts += [
                f"## The search on {searched}",
                f"Object F1 on 100 validation scenes after training, one seed; learning rates {' and '.join(_rates(objectives))}.",
                search_table(objectives),
            ]
    return write_measured(folder / "objectives.md", "Preference objectives on the embedded world", parts)

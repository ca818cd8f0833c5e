"""The page of the DA-DPO study: tables and pictures from the finished runs."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from scripts.studies.measured_page import PLOT_STYLE, mean_curve, write_measured
from scripts.studies.seed_statistics import compare, estimate, markdown_table
from scripts.studies.world_start import read_json

COLUMNS = {
    "hallucinated": "hallucinated captions % ↓",
    "CHAIR_i": "CHAIR_i % ↓",
    "coverage": "coverage % ↑",
    "POPE F1": "POPE F1 ↑",
    "general": "general % ↑",
    "words": "words",
}
MORE = {
    "POPE F1 random": "POPE random",
    "POPE F1 popular": "popular",
    "POPE F1 adversarial": "adversarial",
    "yes": "yes %",
    "AMBER": "AMBER score ↑",
    "Cog": "Cog % ↓",
    "attribute": "colour ↑",
    "count": "count ↑",
    "relation": "relation ↑",
}
Runs = dict[str, dict[int, dict[str, float]]]
BASELINE = "dpo"
COLOURS = {"dpo": "#3a86d4", "da-dpo-paper": "#d9730d", "da-dpo-loss-weight": "#1a9e77"}


def read_runs(out: Path) -> dict[str, Runs]:
    """Read the finished runs: condition -> arm -> seed -> metrics."""
    found: dict[str, Runs] = {}
    for path in sorted((out / "cells").glob("*/*/*.json")):
        if not path.name.endswith(".log.json"):
            found.setdefault(path.parts[-3], {}).setdefault(path.stem, {})[int(path.parts[-2])] = read_json(path)
    return found


def arms_table(runs: Runs, columns: Mapping[str, str], names: Mapping[str, str], sft: Mapping[str, float] | None = None) -> str:
    """Lay out arms by metrics, each a mean and its 95% interval; ``names`` holds the arms in order, by their files' names."""
    rows: list[list[object]] = []
    if sft is not None:
        rows.append(["SFT (the start)", "", *(f"{sft[key]:.1f}" for key in columns)])
    for arm, name in names.items():
        if arm in runs:
            values = runs[arm]
            rows.append([name, len(values), *(estimate([one[key] for one in values.values()]) for key in columns)])
    return markdown_table(["arm", "seeds", *columns.values()], rows)


def differences_table(
    runs: Runs, names: Mapping[str, str], metrics: Sequence[str] = ("hallucinated", "coverage", "POPE F1", "general")
) -> str:
    """Lay out each arm's difference from DPO on the same seeds."""
    rows = []
    for arm, name in names.items():
        if arm in runs and arm != BASELINE:
            by_seed = {key: {seed: one[key] for seed, one in runs[arm].items()} for key in metrics}
            base = {key: {seed: one[key] for seed, one in runs[BASELINE].items()} for key in metrics}
            rows.append([name, *(compare(by_seed[key], base[key]) for key in metrics)])
    return markdown_table(["arm minus DPO", *metrics], rows)


def draw_tradeoff(runs: Runs, sft: Mapping[str, float], path: Path) -> None:
    """Draw hallucination against coverage, a point a run and a cross an arm's mean."""
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for arm, colour in COLOURS.items():
            for name, values in sorted(runs.items()):
                if re.fullmatch(rf"{arm}(-beta-[\d.]+)?", name):
                    x, y = ([one[key] for one in values.values()] for key in ("hallucinated", "coverage"))
                    axes.scatter(x, y, color=colour, s=14, alpha=0.35)
                    axes.scatter(sum(x) / len(x), sum(y) / len(y), color=colour, s=70, marker="X", label=arm if name == arm else None)
                    beta = name.rpartition("beta-")[2] if "beta-" in name else "0.1"
                    axes.annotate(beta, (sum(x) / len(x), sum(y) / len(y)), textcoords="offset points", xytext=(6, 4), fontsize=8)
        axes.scatter(sft["hallucinated"], sft["coverage"], color="#7d8590", s=70, marker="s", label="SFT")
        axes.set_xlabel("hallucinated captions, %")
        axes.set_ylabel("coverage, %")
        axes.legend()
        figure.savefig(path, dpi=130)


def draw_margins(out: Path, condition: str, path: Path) -> None:
    """Draw reward margin over steps by difficulty quartile, mean over seeds, for the three main arms side by side."""
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        panels = figure.subplots(1, len(COLOURS), sharey=True)
        for axes, arm in zip(panels, COLOURS, strict=True):
            logs = [_read_log(log) for log in sorted((out / "cells" / condition).glob(f"*/{arm}.log.json"))]
            for quartile in range(1, 5):
                key = f"rewards/margin_q{quartile}"
                steps, means = mean_curve(logs, key)
                shade = 0.25 + 0.2 * quartile
                label = f"Q{quartile}" + {1: " (easiest)", 4: " (hardest)"}.get(quartile, "")
                axes.plot(steps, means, color=(0.85 - 0.8 * shade * 0.8, 0.35, shade * 0.8), label=label)
            axes.set_title(f"{arm}, {len(logs)} seeds", fontsize=10)
            axes.set_xlabel("step")
        panels[0].set_ylabel("reward margin (plain beta), nats")
        panels[0].legend(fontsize=8)
        figure.savefig(path, dpi=130)


def _read_log(path: Path) -> list[dict[str, float]]:
    return json.loads(path.read_text(encoding="utf-8"))


def write_report(out: Path, folder: Path, *, names: Mapping[str, str], conditions: Mapping[str, str]) -> Path:
    """Write da_dpo.md's measured part and its pictures.

    Args:
        out: Folder of the study.
        names: Of the arms, in order, by the names of their files.
        conditions: The same of the data sets; the first is the main one.
        folder: Where the page goes. Text between the page's start and the line ``<!-- measured -->`` is kept.
    """
    runs, sft = read_runs(out), read_json(out / "cells" / "sft.json")
    first, *others = conditions
    main = runs.get(first, {})
    if BASELINE not in main:
        raise SystemExit("no finished DPO run on the main data set: nothing to report")
    folder.mkdir(parents=True, exist_ok=True)
    draw_tradeoff(main, sft, folder / "da_dpo_tradeoff.png")
    draw_margins(out, first, folder / "da_dpo_margins.png")
    parts = [
        f"## {conditions[first]}, clean labels",
        arms_table(main, COLUMNS, names, sft),
        "Paired over seeds:",
        differences_table(main, names),
        "![hallucination against coverage](da_dpo_tradeoff.png)",
        "![margins by difficulty quartile](da_dpo_margins.png)",
        "### Further metrics",
        arms_table(main, MORE, names, sft),
    ]
    for condition in others:
        those = runs.get(condition, {})
        if BASELINE in those:
            parts += [f"## {conditions[condition]}", arms_table(those, COLUMNS, names), differences_table(those, names)]
    return write_measured(folder / "da_dpo.md", "DA-DPO against DPO", parts)

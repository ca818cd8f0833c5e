"""The page of the LLaVA-MoD study: tables and pictures from the finished runs."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from scripts.studies.measured_page import PLOT_STYLE, mean_curve, write_measured
from scripts.studies.objectives_report import object_f1
from scripts.studies.seed_statistics import compare, estimate, markdown_table
from scripts.studies.world_start import read_json

COLUMNS = {
    "hallucinated": "hallucinated captions % ↓",
    "CHAIR_i": "CHAIR_i % ↓",
    "coverage": "coverage % ↑",
    "object F1": "object F1 ↑",
    "POPE F1": "POPE F1 ↑",
    "general": "general % ↑",
    "words": "words",
}
COMPARED = ("hallucinated", "object F1", "POPE F1", "general")
# The claims, as pairs of arms' files.
MIMIC_BEATS_SFT = (("dense-mimic", "dense-sft"), ("wide-mimic", "wide-sft"), ("sparse-mimic", "sparse-sft"))
SPARSE_BEATS_DENSE = (
    ("sparse-sft", "dense-sft"),
    ("sparse-sft", "wide-sft"),
    ("sparse-mimic", "dense-mimic"),
    ("sparse-mimic", "wide-mimic"),
)
FREEZING = (("sparse-mimic-attention-frozen", "sparse-mimic"),)
REFERENCES = (
    ("kto-teacher-as-reference", "dpo-teacher-as-reference"),
    ("kto-self-as-reference", "dpo-self-as-reference"),
    ("dpo-teacher-as-reference", "dpo-self-as-reference"),
    ("kto-teacher-as-reference", "kto-self-as-reference"),
    ("kto-teacher-centred", "kto-teacher-as-reference"),
    ("kto-teacher-by-token", "kto-teacher-as-reference"),
    ("dpo-teacher-by-token", "dpo-teacher-as-reference"),
    ("dpo-teacher-as-reference", "dpo-of-the-dense-mimic-teacher-as-reference"),
)
PREFERRED = ("dpo-", "kto-")
Runs = dict[str, dict[int, dict[str, float]]]
_TEACHER = "#7d8590"
# By the training that an arm ends with.
_COLOURS = {"dpo": "#1a9e77", "kto": "#8a5cd1", "sft": "#3a86d4", "mimic": "#d9730d"}


def read_runs(out: Path) -> Runs:
    """Read the finished runs: arm -> seed -> metrics."""
    found: Runs = {}
    for path in sorted((out / "cells").glob("*/*.json")):
        if not path.name.endswith(".log.json"):
            values = dict(read_json(path))
            found.setdefault(path.stem, {})[int(path.parent.name)] = values | {"object F1": object_f1(values)}
    return found


def arms_table(runs: Runs, teacher: Mapping[str, float], names: Mapping[str, str]) -> str:
    """Lay out arms by metrics, each a mean and its 95% interval, beside its weights."""
    rows: list[list[object]] = [["teacher", "", *_weights(teacher), *(f"{teacher[key]:.1f}" for key in COLUMNS)]]
    for arm, name in names.items():
        if values := runs.get(arm):
            first = next(iter(values.values()))
            rows.append([name, len(values), *_weights(first), *(estimate([one[key] for one in values.values()]) for key in COLUMNS)])
    return markdown_table(["arm", "seeds", "weights, k", "activated, k", *COLUMNS.values()], rows)


def _weights(values: Mapping[str, float]) -> tuple[str, str]:
    return f"{values['weights'] / 1000:.0f}", f"{values['activated'] / 1000:.0f}"


def differences_table(runs: Runs, pairs: Sequence[tuple[str, str]], names: Mapping[str, str]) -> str:
    """Lay out differences of two arms over the seeds that both have."""
    rows: list[list[object]] = []
    for arm, base in pairs:
        if arm in runs and base in runs:
            columns = [({s: one[key] for s, one in runs[arm].items()}, {s: one[key] for s, one in runs[base].items()}) for key in COMPARED]
            rows.append([f"{names[arm]} - {names[base]}", *(compare(mine, other) for mine, other in columns)])
    return markdown_table(["", *COMPARED], rows)


def against_teacher_table(runs: Runs, teacher: Mapping[str, float], names: Mapping[str, str]) -> str:
    """Lay out each arm's difference from the one teacher, and where its rewards stood before the first step."""
    rows: list[list[object]] = []
    for arm, name in names.items():
        if arm in runs and arm.startswith(PREFERRED):
            columns = [({s: one[key] for s, one in runs[arm].items()}, dict.fromkeys(runs[arm], teacher[key])) for key in COMPARED]
            first = [one for one in runs[arm].values() if "saturated" in one]
            begin = [estimate([one[key] for one in first]) if first else "0" for key in ("first margin", "saturated")]
            rows.append([name, *(compare(mine, other) for mine, other in columns), *begin])
    return markdown_table(["arm minus teacher", *COMPARED, "first margin", "saturated pairs %"], rows)


def draw_tradeoff(runs: Runs, teacher: Mapping[str, float], names: Mapping[str, str], path: Path) -> None:
    """Draw hallucination against coverage: a point a run, a marker an arm's mean."""
    markers = {"dense": "o", "wide": "s", "sparse": "D", "dpo": "^", "kto": "v"}
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(8.6, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, (arm, name) in enumerate(names.items(), 1):
            if arm in runs:
                colour = next(colour for kind, colour in _COLOURS.items() if arm.startswith(kind) or kind in arm)
                marker = next(shape for kind, shape in markers.items() if arm.startswith(kind))
                x, y = ([one[key] for one in runs[arm].values()] for key in ("hallucinated", "coverage"))
                hollow = "none" if any(word in arm for word in ("self", "frozen", "of-the")) else colour
                axes.scatter(x, y, color=colour, s=10, alpha=0.3)
                axes.scatter(
                    sum(x) / len(x),
                    sum(y) / len(y),
                    edgecolors=colour,
                    facecolors=hollow,
                    s=70,
                    marker=marker,
                    label=f"{number} {name}",
                    linewidths=1.5,
                )
                axes.annotate(str(number), (sum(x) / len(x), sum(y) / len(y)), textcoords="offset points", xytext=(6, 4), fontsize=8)
        axes.scatter(teacher["hallucinated"], teacher["coverage"], color=_TEACHER, s=130, marker="*", label="teacher")
        axes.set_xlabel("hallucinated captions, %")
        axes.set_ylabel("coverage, %")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, dpi=130)


def draw_experts(out: Path, path: Path) -> None:
    """Draw each expert's share of the tokens over the steps of the sparse arms, a panel a layer, the mean over seeds."""
    logs = {arm: [json.loads(log.read_text(encoding="utf-8")) for log in sorted((out / "cells").glob(f"*/{arm}.log.json"))]
            for arm in ("sparse-sft", "sparse-mimic")}  # fmt: skip
    keys = sorted({key for log in chain(*logs.values()) for row in log for key in row if key.startswith("router_load/")})
    layers = sorted({key.split("_e")[0] for key in keys})
    if not layers:
        return
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(4.2 * len(layers), 5.2), layout="constrained")
        panels = figure.subplots(len(logs), len(layers), sharex=True, sharey=True, squeeze=False)
        for line, (arm, those) in zip(panels, logs.items(), strict=True):
            for axes, layer in zip(line, layers, strict=True):
                for key in (key for key in keys if key.startswith(layer)):
                    axes.plot(*mean_curve(those, key), label=key.rpartition("_")[2])
                axes.set_title(f"{arm}, sparse layer {layer.rpartition('/l')[2]}", fontsize=10)
        panels[-1][0].set_xlabel("step")
        panels[0][0].set_ylabel("share of the choices")
        panels[0][-1].legend(fontsize=8)
        figure.savefig(path, dpi=130)


def write_report(out: Path, folder: Path, *, names: Mapping[str, str]) -> Path:
    """Write llava_mod.md's measured part and its pictures.

    Args:
        out: Folder of the study.
        folder: Where the page goes. Text between the page's start and the line ``<!-- measured -->`` is kept.
        names: Of the arms, in order, by the names of their files.

    Raises:
        SystemExit: If no run is finished.
    """
    runs = read_runs(out)
    if not runs:
        raise SystemExit(f"no finished run in {out / 'cells'}: nothing to report")
    teacher = dict(read_json(out / "cells" / "teacher.json"))
    teacher["object F1"] = object_f1(teacher)
    folder.mkdir(parents=True, exist_ok=True)
    draw_tradeoff(runs, teacher, names, folder / "llava_mod_tradeoff.png")
    draw_experts(out, folder / "llava_mod_experts.png")
    parts = [
        "## All arms",
        arms_table(runs, teacher, names),
        "![hallucination against coverage](llava_mod_tradeoff.png)",
        "## Does mimicking beat SFT?",
        differences_table(runs, MIMIC_BEATS_SFT, names),
        "## Does sparse beat dense?",
        differences_table(runs, SPARSE_BEATS_DENSE + FREEZING, names),
        "## Does the student hallucinate less than its teacher?",
        against_teacher_table(runs, teacher, names),
        "## Which reference, which form?",
        differences_table(runs, REFERENCES, names),
        "## Experts",
        "![share of each expert](llava_mod_experts.png)",
    ]
    return write_measured(folder / "llava_mod.md", "LLaVA-MoD on the embedded world", parts)

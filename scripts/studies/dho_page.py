"""The page of the study of two heads: tables and pictures from the finished cells."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median

import numpy as np

from mmalign.classifier.metrics import CE_HEAD_WEIGHTS, KD_HEAD_TEMPERATURES
from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.dho_beside import show, show_scores, write_beside
from scripts.studies.dho_cells import (
    LABELS,
    LONG_STEPS,
    MAP_LABELS,
    SINGLE_HEADS,
    STEPS,
    TABLE_LABELS,
    TEACHERS,
    Arm,
    Results,
    gain,
    list_cells,
    load_cells,
    pick,
    scores,
    swept_weight,
    teacher_accuracies,
)
from scripts.studies.heat_map import save_heat_map

_VIEWS = {
    "centre": "cached, the stored image; free views for the student",
    "fixed": "cached, four views that both see",
    "live": "live, the student's own view",
}
_DHO = Arm("dual-head")
_ARMS = {
    "CE only": Arm("ce-only"),
    "FixMatch": Arm("fixmatch"),
    "KD only": Arm("kd-only"),
    "feature KD": Arm("feature-kd"),
    **{f"single head, w = {w}": Arm("single-head", w) for w in (0.2, 0.5, 0.8)},
    "DHO, CE head alone": Arm("dual-head", head="ce_head"),
    "DHO, KD head alone": Arm("dual-head", head="kd_head"),
    "DHO, mixing 0.5 / 0.5 (published)": Arm("dual-head", head="published"),
    "**DHO, tuned mixing**": Arm("dual-head", head="mixed"),
}
_CALIBRATED = {
    "single head, w = 0.5": Arm("single-head"),
    "KD only": Arm("kd-only"),
    "DHO, CE head alone": Arm("dual-head", head="ce_head"),
    "DHO, KD head alone": Arm("dual-head", head="kd_head"),
    "DHO, mixing 0.5 / 0.5": Arm("dual-head", head="published"),
    "DHO, tuned mixing": Arm("dual-head", head="mixed"),
}


def accuracy_table(cells: Results, student: str) -> str:
    """Every form by labels, under the real teacher."""
    present = [labels for labels in TABLE_LABELS if any(c.labels == labels and c.student == student for c in cells)]
    rows = [[name, *(show_scores(cells, labels, arm, student=student) for labels in present)] for name, arm in _ARMS.items()]
    rows = [row for row in rows if any(row[1:])]
    rows.append(["DHO minus the best single head", *(show(gain(cells, labels, student=student), sign=True) for labels in present)])
    return markdown_table(["form", *(f"{labels} ({LABELS[labels]} labels)" for labels in present)], rows)


def pairs_table(cells: Results) -> str:
    """DHO against each baseline on the same seeds, with the p-value of the paired test."""
    present = [labels for labels in TABLE_LABELS if len(pick(cells, labels, _DHO)) > 1]
    rows = []
    for arm in [*(arm for arm in SINGLE_HEADS if arm.weight <= 0.8), Arm("feature-kd"), Arm("fixmatch")]:
        row = [f"{arm.form}, w = {arm.weight}" if arm.form == "single-head" else arm.form]
        for labels in present:
            own, other = scores(cells, labels, _DHO), scores(cells, labels, arm)
            row.append(str(page.compare(own, other)) if len(set(own) & set(other)) > 1 else "")
        rows.append(row)
    return markdown_table(["DHO minus", *present], rows)


def map_table(cells: Results, accuracies: dict[str, float], rival: str) -> str:
    """The gain by label share and teacher."""
    rows = [[labels, *(show(gain(cells, labels, rival, teacher=t), sign=True) for t in accuracies)] for labels in MAP_LABELS]
    return markdown_table(["labels", *(f"{t}, {value:.0%}" for t, value in accuracies.items())], rows)


def weights_table(cells: Results) -> str:
    """Every weight of the single head under the blind teacher, and DHO."""
    weights = (0.5, 0.8, 0.9, 0.95)
    arms = [Arm("kd-only"), *(Arm("single-head", w) for w in weights), Arm("ce-only"), _DHO]
    rows = [[labels, *(show_scores(cells, labels, arm, teacher="blind") for arm in arms)] for labels in MAP_LABELS]
    return markdown_table(["labels", "KD only", *(f"w = {w}" for w in weights), "CE only", "DHO"], [row for row in rows if row[-1]])


def long_table(cells: Results) -> str:
    """Corners of the map with four times the steps beside the same cells of the map."""
    corners = {(c.labels, c.teacher) for c in cells if c.steps == LONG_STEPS and c.teacher != "none"}
    rows = []
    for labels, teacher in sorted(corners, key=lambda pair: (LABELS[pair[0]], pair[1])):
        arms = [Arm("ce-only"), Arm("kd-only"), Arm("single-head"), Arm("single-head", swept_weight(labels)), _DHO]
        for steps in (STEPS, LONG_STEPS):
            shown = [show_scores(cells, labels, arm, teacher=teacher, steps=steps) for arm in arms]
            gains = [show(gain(cells, labels, rival, teacher=teacher, steps=steps), sign=True) for rival in ("validation", "equal")]
            rows.append([f"{labels}, {teacher}", steps, *shown, *gains])
    header = ["labels, teacher", "steps", "CE only", "KD only", "single, w = 0.5", "single, w = 0.2 or 0.8", "DHO"]
    return markdown_table([*header, "gain over the best", "over w = 0.5"], rows)


def views_table(cells: Results) -> str:
    """What the teacher sees: accuracy, and the cost of a run, on the seeds that all ways have."""
    present = [labels for labels in ("1%", "10%") if any(c.views != "centre" and c.labels == labels for c in cells)]
    seeds = {labels: set.intersection(*(set(pick(cells, labels, _DHO, views=v)) for v in _VIEWS)) for labels in present}
    rows = []
    for views, name in _VIEWS.items():
        found = [[(seed, labels) for seed in pick(cells, labels, _DHO, views=views) if seed in seeds[labels]] for labels in present]
        accuracies = [[scores(cells, labels, _DHO, views=views)[seed] for seed, labels in one] for one in found]
        runs = [pick(cells, labels, _DHO, views=views)[seed] for one in found for seed, labels in one]
        seconds = [run["cpu_seconds"] for run in runs if "cpu_seconds" in run]
        rows.append([name, *map(show, accuracies), f"{median(seconds):.0f}" if seconds else ""])
    return markdown_table(["the teacher sees", *present, "CPU s a run (median)"], rows)


def calibration_table(cells: Results) -> str:
    """Expected calibration error of heads and mixtures, %."""
    present = [labels for labels in MAP_LABELS if pick(cells, labels, _DHO)]
    rows = [[name, *(show_scores(cells, labels, arm, metric="ece") for labels in present)] for name, arm in _CALIBRATED.items()]
    return markdown_table(["calibration error, %", *present], rows)


def _cosines(cells: Results, labels: str, teacher: str, form: str, steps: int) -> list[Sequence[float]]:
    """The logged cosines of each seed."""
    return [run["gradient_cosine"] for run in pick(cells, labels, Arm(form), teacher=teacher, steps=steps).values()]


def cosine_table(cells: Results) -> str:
    """Mean cosine over the first and the last half of the training."""
    rows = []
    for steps, labels, teacher in ((s, one, t) for s in (STEPS, LONG_STEPS) for one in MAP_LABELS for t in TEACHERS):
        halves = []
        for form in ("single-head", "dual-head"):
            series = [_halves(one) for one in _cosines(cells, labels, teacher, form, steps) if len(one) > 1]
            halves += [f"{mean(half):.2f}" for half in zip(*series, strict=True)]
        if len(halves) == 4:
            rows.append([f"{labels}, {teacher}", steps, *halves])
    header = ["labels, teacher", "steps", "one head, first half", "last half", "two heads, first half", "last half"]
    return markdown_table(header, rows)


def _halves(series: Sequence[float]) -> tuple[float, float]:
    middle = len(series) // 2
    return mean(series[:middle]), mean(series[middle:])


def draw_cosines(cells: Results, path: Path, steps: int) -> bool:
    """Draw the cosine of both losses' gradients over the steps, one head against two, mean over seeds; False without any."""
    colours = {"single-head": "#d9730d", "dual-head": "#3a86d4"}
    corners = [("1%", "weak"), ("1%", "real"), ("20%", "weak"), ("20%", "blind")]
    curves = {(corner, form): [one for one in _cosines(cells, *corner, form, steps) if one] for corner in corners for form in colours}
    corners = [corner for corner in corners if all(curves[corner, form] for form in colours)]
    if not corners:
        return False
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 8.5}
    with page.drawing(path, (0.6 + 2.4 * len(corners), 2.6), dpi=150, style=style) as figure:
        panels = figure.subplots(1, len(corners), sharey=True, squeeze=False)[0]
        for axes, corner in zip(panels, corners, strict=True):
            for form, colour in colours.items():
                values = np.mean(np.array(curves[corner, form]), axis=0)
                axes.plot(50 * np.arange(len(values)), values, color=colour, label=form)
            axes.axhline(0, color=page.GREY, linewidth=0.8)
            axes.set(title=f"{corner[0]} of the labels, {corner[1]} teacher", xlabel="step")
        panels[0].set_ylabel("cosine of CE's and KD's gradients")
        panels[0].legend(frameon=False)
    return True


def draw_map(cells: Results, accuracies: dict[str, float], rival: str, path: Path) -> bool:
    """Draw the gain by label share and teacher; False without any."""
    found = {labels: [gain(cells, labels, rival, teacher=teacher) for teacher in accuracies] for labels in MAP_LABELS}
    rows = [labels for labels, line in found.items() if any(line)]
    if rows:
        save_heat_map(
            path,
            [[mean(values) if values else None for values in found[labels]] for labels in rows],
            rows=rows,
            columns=[f"{value:.0%}\n{'corrected' if 'corrected' in teacher else teacher}" for teacher, value in accuracies.items()],
            title="DHO minus " + ("best single head" if rival == "validation" else "single head, w = 0.5"),
            ylabel="labelled share",
            xlabel="teacher's accuracy on unlabelled images",
            centre=0.0,
        )
    return bool(rows)


def draw_mixing(cells: Results, labels: str, teacher: str, path: Path) -> bool:
    """Draw validation accuracy over the mixing grid, mean over seeds; False without any."""
    grids = [np.array(result["mixing_grid"]) for result in pick(cells, labels, _DHO, teacher=teacher).values()]
    if grids:
        save_heat_map(
            path,
            (100 * np.mean(grids, axis=0))[::2].tolist(),
            rows=[f"{a:g}" for a in CE_HEAD_WEIGHTS[::2]],
            columns=[f"{b:g}" for b in KD_HEAD_TEMPERATURES],
            title=f"validation accuracy, {labels} of the labels, {teacher} teacher",
            ylabel="CE head weight",
            xlabel="KD head temperature",
        )
    return bool(grids)


def draw_pictures(cells: Results, folder: Path) -> list[str]:
    """Draw all pictures for which there are cells; lines of Markdown."""
    accuracies = teacher_accuracies(cells)
    drawings: list[tuple[str, str, Callable[[Path], bool]]] = [
        ("dho_map.png", "gain over the best single head", lambda path: draw_map(cells, accuracies, "validation", path)),
        ("dho_map_equal.png", "gain over one head with equal weights", lambda path: draw_map(cells, accuracies, "equal", path)),
        ("dho_cosines.png", "cosine of both losses' gradients over the steps", lambda path: draw_cosines(cells, path, STEPS)),
        ("dho_cosines_long.png", f"the same over {LONG_STEPS} steps", lambda path: draw_cosines(cells, path, LONG_STEPS)),
        ("dho_mixing_1pc.png", "mixing grid, 1% of the labels", lambda path: draw_mixing(cells, "1%", "real", path)),
        ("dho_mixing_20pc.png", "mixing grid, 20% of the labels", lambda path: draw_mixing(cells, "20%", "real", path)),
        ("dho_mixing_blind.png", "mixing grid, 10% of the labels, blind teacher", lambda path: draw_mixing(cells, "10%", "blind", path)),
    ]
    return [f"![{caption}]({name})" for name, caption, draw in drawings if draw(folder / name)]


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of dho.md and its pictures.

    Raises:
        SystemExit: If no cell is finished.
    """
    found, folder = load_cells(options.out), options.report
    if not found:
        raise SystemExit(f"no finished cell in {options.out / 'cells'}; run the study without --report-only")
    cells = {cell: run for cell, run in found.items() if not cell.beside}
    written = write_map(cells, folder) if cells else folder / "dho.md"
    write_beside(found, written)
    return written


def write_map(cells: Results, folder: Path) -> Path:
    """Write tables and pictures of the map of labels by teachers, and of the forms on it."""
    accuracies = teacher_accuracies(cells)
    parts = [
        "### Accuracy on 5,000 test photographs, %: mean ± 95% interval over seeds (seeds)",
        accuracy_table(cells, "small"),
    ]
    if len(pick(cells, "1%", _DHO)) > 1:
        parts += ["DHO against each baseline on the same seeds, with a paired t-test:", pairs_table(cells)]
    if any(c.student == "medium" for c in cells):
        parts += ["### The larger student", accuracy_table(cells, "medium")]
    parts += [
        "### The map: DHO (tuned) minus the single head that validation images prefer, points",
        map_table(cells, accuracies, "validation"),
    ]
    parts += ["Minus the single head that is best on the test images (nobody can choose it):", map_table(cells, accuracies, "test")]
    parts += ["Minus one head with equal weights (w = 0.5):", map_table(cells, accuracies, "equal")]
    if any(c.teacher == "blind" for c in cells):
        parts += ["### The blind teacher: every weight of the single head", weights_table(cells)]
    if any(c.steps == LONG_STEPS for c in cells):
        parts += ["### Longer training", long_table(cells)]
    if any(c.views != "centre" for c in cells):
        parts += ["### What the teacher sees (DHO, real teacher)", views_table(cells)]
    parts += ["### Calibration under the real teacher", calibration_table(cells)]
    parts += ["### Cosine of CE's and KD's gradients in the backbone, mean over seeds", cosine_table(cells)]
    parts += ["\n".join(draw_pictures(cells, folder))]
    every = [cell for cell in list_cells(quick=False) if not cell.beside]
    costs = []
    for steps in (STEPS, LONG_STEPS):
        seconds = [result["cpu_seconds"] for cell, result in cells.items() if "cpu_seconds" in result and cell.steps == steps]
        costs += [f"{median(seconds):.0f} CPU seconds with {steps} steps (median)"] if seconds else []
    parts.append(f"{len(set(every) & set(cells))} cells of {len(every)}; one took {', '.join(costs)}.")
    return page.write_measured(folder / "dho.md", "When do two heads pay?", parts)

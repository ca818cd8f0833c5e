"""The pictures of the study of two heads."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from mmalign.evaluation.classification import CE_HEAD_WEIGHTS, KD_HEAD_TEMPERATURES
from mmalign.reports.heat_map import save_heat_map
from scripts.studies.dho_cells import LONG_STEPS, MAP_LABELS, STEPS
from scripts.studies.dho_scores import Results, gain, pick, teacher_accuracies


def draw_cosines(cells: Results, path: Path, steps: int) -> bool:
    """Draw the cosine of both losses' gradients over the steps, one head against two, mean over seeds; False without any."""
    corners = [("1%", "weak"), ("1%", "real"), ("20%", "weak"), ("20%", "blind")]
    curves = {
        (corner, form): [
            run["gradient_cosine"]
            for run in pick(cells, corner[0], form, teacher=corner[1], steps=steps).values()
            if run["gradient_cosine"]
        ]
        for corner in corners
        for form in ("single-head", "dual-head")
    }
    corners = [corner for corner in corners if curves[corner, "single-head"] and curves[corner, "dual-head"]]
    if not corners:
        return False
    with rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 8.5}):
        figure = Figure(figsize=(0.6 + 2.4 * len(corners), 2.6), layout="constrained", dpi=150)
        panels = figure.subplots(1, len(corners), sharey=True, squeeze=False)[0]
        for axes, corner in zip(panels, corners, strict=True):
            for form, colour in (("single-head", "#d9730d"), ("dual-head", "#3a86d4")):
                values = np.mean(np.array(curves[corner, form]), axis=0)
                axes.plot(50 * np.arange(len(values)), values, color=colour, label=form)
            axes.axhline(0, color="#7d8590", linewidth=0.8)
            axes.set(title=f"{corner[0]} of the labels, {corner[1]} teacher", xlabel="step")
        panels[0].set_ylabel("cosine of CE's and KD's gradients")
        panels[0].legend(frameon=False)
        figure.savefig(path)
    return True


def draw_map(cells: Results, accuracies: dict[str, float], rival: str, path: Path) -> bool:
    """Draw the gain by label share and teacher; False without any."""
    found = {labels: [gain(cells, labels, teacher, rival) for teacher in accuracies] for labels in MAP_LABELS}
    rows = [labels for labels, line in found.items() if any(line)]
    if not rows:
        return False
    save_heat_map(
        path,
        [[mean(values) if values else None for values in found[labels]] for labels in rows],
        rows=rows,
        columns=[f"{value:.0%}\n{'corrected' if 'corrected' in teacher else teacher}" for teacher, value in accuracies.items()],
        title="DHO minus " + ("best single head" if rival == "validation" else "single head, w = 0.5"),
        row_label="labelled share",
        column_label="teacher's accuracy on unlabelled images",
        centre=0.0,
    )
    return True


def draw_mixing(cells: Results, labels: str, teacher: str, path: Path) -> bool:
    """Draw validation accuracy over the mixing grid, mean over seeds; False without any."""
    grids = [np.array(result["mixing_grid"]) for result in pick(cells, labels, "dual-head", teacher=teacher).values()]
    if not grids:
        return False
    save_heat_map(
        path,
        (100 * np.mean(grids, axis=0))[::2].tolist(),
        rows=[f"{a:g}" for a in CE_HEAD_WEIGHTS[::2]],
        columns=[f"{b:g}" for b in KD_HEAD_TEMPERATURES],
        title=f"validation accuracy, {labels} of the labels, {teacher} teacher",
        row_label="CE head weight",
        column_label="KD head temperature",
    )
    return True


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

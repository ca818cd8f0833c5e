"""What the studies' pages share: prose that is kept above what was measured, and curves averaged over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.data.whole_files import write_whole

MARK = "<!-- measured -->"
PLOT_STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.2, "legend.frameon": False}


def write_measured(page: Path, title: str, parts: Sequence[str]) -> Path:
    """Write the parts below the mark; what stands above it is kept, a title where there is no page yet."""
    kept = page.read_text(encoding="utf-8").partition(MARK)[0] if page.is_file() else f"# {title}"
    write_whole(page, f"{kept.rstrip()}\n\n{MARK}\n\n" + "\n\n".join(parts) + "\n")
    return page


def mean_curve(logs: Sequence[Sequence[Mapping[str, float]]], key: str) -> tuple[list[float], list[float]]:
    """Average a logged number over runs: the steps that all of them logged it at, and the means."""
    curves = [{row["step"]: row[key] for row in log if key in row} for log in logs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return steps, [sum(curve[step] for curve in curves) / len(curves) for step in steps]

"""Training logs of several runs as one HTML file that asks nothing of the network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.errors import UserError
from mmalign.reports.page import render_page
from mmalign.reports.training_plots import TrainingRun, draw_training


def write_training_page(out: Path, *, title: str, runs: Sequence[TrainingRun], smooth: int, facts: Mapping[str, str]) -> Path:
    """Write the page; equal arguments give equal bytes, and every text in them is shown as text.

    Args:
        out: The HTML file.
        title: Of the page.
        runs: Their logs.
        smooth: Each point is the mean of this many logs.
        facts: How it was made: name -> value, in this order.

    Returns:
        ``out``.

    Raises:
        ValueError: If nothing was logged.
    """
    plots = draw_training(runs, smooth=smooth)
    if not plots:
        raise UserError(f"{', '.join(run.name for run in runs)} logged nothing; expected runs of more steps than --logging-steps")
    return render_page(out, "training_page.html.j2", title=title, plots=plots, smooth=smooth, facts=facts)

"""Does a likelihood search do what training does? Beams of the start and of the start after DPO, on the embedded world.

    python -m scripts.studies.beams --processes 2           # everything
    python -m scripts.studies.beams --processes 2 --quick   # one seed

On a model after DPO, the search with length penalty 0 is that of "From r to Q*" (arXiv:2404.12358). ``--report docs/studies`` writes the
published page.
"""

import argparse
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmalign.engine.beams import Beams
from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.study import main, run_missing, write_json
from scripts.studies.world import (
    BATCH,
    CAPTION_NOISE,
    DPO_STEPS,
    headings,
    make_dpo,
    make_held_out,
    make_sft,
    measure,
    object_f1,
    read_metrics,
)

SEEDS, NUM_BEAMS, PENALTIES = (1, 2, 3, 4, 5), (5, 2, 10), (0.0, 1.0)
MODELS = ("SFT", "DPO")
SECONDS = "CPU seconds"
COLUMNS = headings("object F1", "hallucinated", "CHAIR_i", "coverage", "words") | {SECONDS: SECONDS}
COMPARED = headings("object F1", "hallucinated", "coverage", "words")
ABOUT = f"""Captions of the test scenes, searched for with so many beams; `P` is the length penalty: 0 ranks by the sum of the tokens'
log-probabilities, 1 by their mean. `DPO`: the start after {DPO_STEPS} steps of {BATCH} pairs. A seed draws start and pairs. Of the
captions that the start has learnt from, {100 * CAPTION_NOISE:.0f}% name one object that is not there beside those that are. Seconds are
those of this process for all captions, loading included. Means over seeds with 95% intervals (Student's t); differences are paired by
seed."""


@dataclass(frozen=True)
class Cell:
    """One model's captions by one search; one beam is greedy."""

    model: str
    beams: int
    penalty: float
    seed: int

    @property
    def arm(self) -> str:
        """The name of its files."""
        return f"{self.model.lower()}-{self.beams}-{self.penalty:g}"

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"{self.model}, " + ("greedy" if self.beams == 1 else f"{self.beams} beams, P {self.penalty:g}")

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        return out / "cells" / str(self.seed) / f"{self.arm}.json"


def list_cells(seed: int) -> list[Cell]:
    """List a seed's searches, the most important first."""
    searches = [(1, 0.0), *((beams, penalty) for beams in NUM_BEAMS for penalty in PENALTIES)]
    return [Cell(model, beams, penalty, seed) for beams, penalty in searches for model in MODELS]


def run_cell(cell: Cell, out: Path, *, smoke: bool) -> str:
    """Make the model where it is missing, and search."""
    folder = out / "starts" / str(cell.seed)
    model = make_sft(folder, smoke=smoke, seed=cell.seed)
    if cell.model == "DPO":
        model = make_dpo(out / "dpo" / str(cell.seed), model, cell.seed, smoke=smoke)
    beams = None if cell.beams == 1 else Beams(cell.beams, length_penalty=cell.penalty)
    before = time.process_time()
    metrics = measure(model, out / "test", parts=("chair",), beams=beams)
    write_json(cell.path(out), metrics | {SECONDS: time.process_time() - before})
    return f"object F1 {object_f1(metrics):.1f}"


def run_study(options: argparse.Namespace) -> None:
    """Search with all models of a seed in one process, seed by seed."""
    make_held_out(options.out, smoke=options.smoke)
    cells = [cell for seed in SEEDS[: 1 if options.quick or options.smoke else None] for cell in list_cells(seed)]
    run_missing(cells, partial(run_cell, out=options.out, smoke=options.smoke), options, together=lambda cell: cell.seed)


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of ``beams.md``; what has no finished run is left out."""
    parts = ["```\npython -m scripts.studies.beams --out runs/studies/beams --processes 2 --report docs/studies\n```", ABOUT]
    runs = page.read_runs(options.out / "cells", read=read_metrics)
    names = {cell.arm: cell.title for model in MODELS for cell in list_cells(0) if cell.model == model}
    rows = page.arm_rows(runs, names, COLUMNS).values()
    parts += ["## What the model says", markdown_table(["search", "seeds", *COLUMNS.values()], rows)]
    pairs = [(arm, "sft-1-0") for arm in names] + [(arm, "dpo-1-0") for arm in names if arm.startswith("dpo")]
    both = [(a, b) for a, b in pairs if a != b and set(runs.get(a, {})) & set(runs.get(b, {}))]
    rows = [[f"{names[a]} - {names[b]}", *(page.compare_metric(runs[a], runs[b], key) for key in COMPARED)] for a, b in both]
    parts += ["## Differences", markdown_table(["search - other", *COMPARED.values()], rows)]
    return page.write_measured(options.report / "beams.md", "Beams against training on the embedded world", parts)


if __name__ == "__main__":
    main(__doc__, name="beams", quick="one seed", run=run_study, write_page=write_page)

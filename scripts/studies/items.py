"""Does ranking the items inside one answer lessen hallucination? IRPO on items against DPO and SFT, on the embedded world.

    python -m scripts.studies.items --processes 2           # everything
    python -m scripts.studies.items --processes 2 --quick   # one seed, fewer steps, the usual strength alone

Each row is a picture and an enumeration of its objects with one that usually comes with them and is not there. The same rows are items of
one answer (IRPO, arXiv:2504.15477), pairs of whole answers with and without that object (DPO), and the true answers (SFT: more training
on what is chosen). Each arm searches its strength and learning rate on rows of a seed of their own. ``--report docs/studies`` writes the
published page.
"""

import argparse
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmalign.files import read_json
from scripts.studies.items_page import NAMES, write_page
from scripts.studies.items_rows import list_rows, rank_items, write_forms
from scripts.studies.study import StartCell, best_setting, main, run_missing, write_json, write_run
from scripts.studies.world import BATCH, make_held_out, make_sft, measure, object_f1, run

SEEDS, SEARCH_SEED, HELD_OUT_SEED = (1, 2, 3), 100, 9_003
NUM_ROWS, NUM_HELD_OUT = 2400, 300
STEPS, QUICK_STEPS, SMOKE_STEPS = 100, 60, 3
RATES = ("1e-4", "3e-4")


@dataclass(frozen=True)
class Arm:
    """How a model is trained on the rows."""

    name: str
    method: str
    rows: str
    """The form of the rows."""
    objective: str | None
    strengths: tuple[str, ...]
    """Values of beta that the search tries, the usual one last; one that says nothing where there is no beta."""

    def words(self, strength: str) -> list[str]:
        """What the training is given beside what all are."""
        if self.objective is None:
            return []
        items = ["--items"] if self.method == "listwise" else []
        return [*items, "--objective", f"{self.objective}:beta={strength}", "--reference", "copy"]


ARMS = (
    Arm("irpo-items", "listwise", "items", "irpo", ("0.1", "1")),
    Arm("dpo-pairs", "preference", "pairs", "dpo", ("0.1", "0.3")),
    Arm("sft-true", "sft", "chats", None, ("0",)),
)


@dataclass(frozen=True)
class Cell:
    """One run: an arm on a seed's rows; of a search also what it tries."""

    arm: Arm
    seed: int
    strength: str = ""
    rate: str = ""

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        if self.strength:
            return out / "search" / self.arm.name / f"{self.strength}-{self.rate}.json"
        return out / "cells" / str(self.seed) / f"{self.arm.name}.json"


def start_folder(seed: int, out: Path) -> Path:
    """The folder of a seed's start; the search trains from that of the first."""
    return out / "starts" / str(SEEDS[0] if seed == SEARCH_SEED else seed)


def read_search(arm: Arm, out: Path) -> dict[tuple[str, str], float]:
    """Read the finished runs of an arm's search: (strength, learning rate) -> object F1."""
    cells = [Cell(arm, SEARCH_SEED, strength, rate) for strength in arm.strengths for rate in RATES]
    return {(one.strength, one.rate): object_f1(read_json(one.path(out))) for one in cells if one.path(out).is_file()}


def measure_all(model: Path, out: Path, *, smoke: bool) -> dict[str, float]:
    """Measure what a model says, and how it ranks the items of held-out answers."""
    ranked = rank_items(model, list_rows(HELD_OUT_SEED, 12 if smoke else NUM_HELD_OUT))
    return measure(model, out / "test", parts=("chair", "pope")) | ranked


def run_start(cell: StartCell, out: Path, *, smoke: bool) -> str:
    """Make a seed's start, and measure it."""
    start = make_sft(start_folder(cell.seed, out), smoke=smoke, seed=cell.seed)
    metrics = measure_all(start, out, smoke=smoke)
    write_json(cell.path(out), metrics)
    return f"NDCG {metrics['NDCG']:.1f}"


def run_cell(cell: Cell, out: Path, *, steps: int, smoke: bool) -> str:
    """Train, measure, and keep the numbers and the log; the weights are deleted."""
    arm, searching = cell.arm, bool(cell.strength)
    strength, rate = (cell.strength, cell.rate) if searching else best_setting(read_search(arm, out), arm.name, out)
    rows, model = out / "rows" / str(cell.seed), out / "models" / f"{arm.name}-{cell.seed}-{strength}-{rate}"
    write_forms(rows, list_rows(cell.seed, 48 if smoke else NUM_ROWS))
    shutil.rmtree(model, ignore_errors=True)
    run(["train", arm.method, "--model", start_folder(cell.seed, out) / "sft", "--data", rows / f"{arm.rows}.parquet", "--out", model,
         *arm.words(strength), "--batch-size", BATCH, "--max-steps", steps, "--learning-rate", rate, "--warmup-ratio", 0.1,
         "--logging-steps", max(1, steps // 15), "--seed", cell.seed])  # fmt: skip
    metrics = measure(model, out / "validation", parts=("chair",)) if searching else measure_all(model, out, smoke=smoke)
    write_run(cell.path(out), metrics | {"beta": float(strength), "learning rate": float(rate)}, model=model)
    shutil.rmtree(model)
    return f"object F1 {object_f1(metrics):.1f}"


def run_study(options: argparse.Namespace) -> None:
    """Make the first start; search; compare, seed by seed."""
    make_held_out(options.out, smoke=options.smoke)
    steps = SMOKE_STEPS if options.smoke else QUICK_STEPS if options.quick else STEPS
    work = partial(run_cell, out=options.out, steps=steps, smoke=options.smoke)
    for number, seed in enumerate(SEEDS[:1] if options.quick or options.smoke else SEEDS):
        run_missing([StartCell(seed)], partial(run_start, out=options.out, smoke=options.smoke), options)
        if number == 0:
            run_missing(list_searches(quick=options.quick, smoke=options.smoke), work, options)
        run_missing([Cell(arm, seed) for arm in ARMS], work, options)


def list_searches(*, quick: bool = False, smoke: bool = False) -> list[Cell]:
    """List the runs of the search; one of each arm in the smoke form."""
    strengths = {arm: arm.strengths[-1:] if quick else arm.strengths for arm in ARMS}
    every = [[Cell(arm, SEARCH_SEED, strength, rate) for strength in strengths[arm] for rate in RATES] for arm in ARMS]
    return [cell for cells in every for cell in cells[: 1 if smoke else None]]


def report(options: argparse.Namespace) -> Path:
    """Write the page."""
    searches = {(NAMES[arm.name], "beta" if arm.objective else "none"): found for arm in ARMS if (found := read_search(arm, options.out))}
    return write_page(options, searches)


if __name__ == "__main__":
    main(__doc__, name="items", quick="one seed, fewer steps, the usual strength alone", run=run_study, write_page=report)

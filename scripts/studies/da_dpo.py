"""Does difficulty-aware DPO hallucinate less than DPO? Arms from one start on the embedded world, over data sets and seeds.

    python -m scripts.studies.da_dpo --out runs/studies/da_dpo --processes 2           # everything
    python -m scripts.studies.da_dpo --out runs/studies/da_dpo --processes 2 --quick   # two seeds, about 15 minutes on two cores

A seed draws its own pairs, scores their difficulty and orders the batches; all arms of a seed see the same pairs in the same order with the
same number of steps. Each finished run is a file under ``cells/``: a stopped study goes on where it stopped, and ``--report`` writes
docs/studies/da_dpo.md from what is there.
"""

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset

from scripts.studies.da_dpo_report import write_report
from scripts.studies.processes import run_over_processes
from scripts.studies.world_start import make_scored_pairs, make_start, measure, measure_start, quiet, run, slug, write_json

NUM_PAIRS, STEPS, BATCH = 2400, 150, 16
BETA, LEARNING_RATE = 0.1, 1e-4
SEEDS = (1, 2, 3, 4, 5)
Source = Literal["estimated", "oracle", "shuffled", "contrastive", "generative"]


@dataclass(frozen=True)
class Condition:
    """How the pairs are made."""

    name: str
    easy_share: float
    label_noise: float


@dataclass(frozen=True)
class Arm:
    """How the pairs are trained on.

    Attributes:
        name: In tables.
        mode: Of ``--difficulty-mode``.
        source: Where a pair's difficulty comes from.
        beta: DPO's.
        early_stop: Whether the step with the fewest hallucinated captions on the validation scenes is kept.
        words: More options of ``train preference``.
    """

    name: str
    mode: str = "off"
    source: Source = "estimated"
    beta: float = BETA
    early_stop: bool = False
    words: tuple[str, ...] = ()


MAIN = Condition("80% easy", 0.8, 0.0)
CONDITIONS = (
    MAIN,
    Condition("50% easy", 0.5, 0.0),
    Condition("95% easy", 0.95, 0.0),
    Condition("80% easy, 10% flipped", 0.8, 0.1),
)
DPO = Arm("DPO")
CORE = (DPO, Arm("DA-DPO paper", "paper"), Arm("DA-DPO loss-weight", "loss-weight"))
FURTHER = (
    Arm("DPO, beta x 1.5", beta=1.5 * BETA),
    Arm("DA-DPO paper-norm", "paper-norm"),
    Arm("DA-DPO both", "both"),
    Arm("DPO, early stop", early_stop=True),
    Arm("paper, true grade", "paper", "oracle"),
    Arm("loss-weight, true grade", "loss-weight", "oracle"),
    Arm("paper, shuffled", "paper", "shuffled"),
    Arm("loss-weight, shuffled", "loss-weight", "shuffled"),
    Arm("paper, CLIP alone", "paper", "contrastive"),
    Arm("paper, MLLM alone", "paper", "generative"),
    Arm("loss-weight, CLIP alone", "loss-weight", "contrastive"),
    Arm("loss-weight, MLLM alone", "loss-weight", "generative"),
)
# What keeps coverage elsewhere: the chosen answer's likelihood beside the preference.
WITH_SFT = tuple(Arm(f"{arm.name}, SFT term", arm.mode, words=("--sft-weight", "1")) for arm in CORE)
GRID = tuple(Arm(f"{arm.name}, beta {beta:g}", arm.mode, beta=beta) for beta in (0.03, 0.3) for arm in CORE)


@dataclass(frozen=True)
class Cell:
    """One run."""

    condition: Condition
    arm: Arm
    seed: int

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        return out / "cells" / slug(self.condition.name) / str(self.seed) / f"{slug(self.arm.name)}.json"


def list_tiers(*, quick: bool) -> list[list[Cell]]:
    """List the runs, the most important ones first; those of a tier may run side by side."""
    if quick:
        arms = (*CORE, *FURTHER[:4])
        return [[Cell(MAIN, arm, seed) for seed in (1, 2) for arm in arms], _cells(CONDITIONS[2:], CORE, (1, 2))]
    return [
        _cells([MAIN], CORE, SEEDS),
        _cells(CONDITIONS[1:], CORE, SEEDS[:3]),
        *(_cells([MAIN], (*WITH_SFT, *FURTHER), seeds) for seeds in (SEEDS[:3], SEEDS[3:])),
        _cells(CONDITIONS[1:], CORE, SEEDS[3:]),
        _cells([MAIN], GRID, SEEDS[:3]),
    ]


def _cells(conditions: Sequence[Condition], arms: Sequence[Arm], seeds: Sequence[int]) -> list[Cell]:
    """Those of one data set stand together."""
    return [Cell(condition, arm, seed) for condition in conditions for seed in seeds for arm in arms]


def run_cell(cell: Cell, out: Path, *, smoke: bool) -> None:
    """Train one arm, measure it, and keep the numbers and the log; the weights are deleted."""
    quiet()
    start = time.perf_counter()
    data = write_difficulty(cell, out, make_data(cell.condition, cell.seed, out, smoke=smoke))
    model = out / "models" / f"{slug(cell.condition.name)}-{cell.seed}-{slug(cell.arm.name)}"
    steps = 3 if smoke else STEPS
    words = ["train", "preference", "--model", out / "start" / "sft", "--data", data, "--reference", "cached", "--out", model,
             "--batch-size", BATCH, "--max-steps", steps, "--learning-rate", LEARNING_RATE, "--warmup-ratio", 0.1, "--beta", cell.arm.beta,
             "--difficulty-mode", cell.arm.mode, "--logging-steps", max(1, steps // 15), "--seed", cell.seed, *cell.arm.words]  # fmt: skip
    if cell.arm.early_stop:
        words += ["--save-steps", max(1, steps // 5), "--save-total-limit", 5]
    run(words)
    metrics = {}
    best = model
    if cell.arm.early_stop:
        best = _best_checkpoint(model, out / "start" / "validation")
        metrics["step"] = float(best.name.split("-")[-1])
    metrics |= measure(best, out / "start" / "test")
    logs = cell.path(out).with_suffix(".log.json")
    logs.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model / "train_log.json", logs)
    write_json(cell.path(out), metrics | {"seconds": time.perf_counter() - start})
    shutil.rmtree(model)
    print(f"{cell.condition.name} | seed {cell.seed} | {cell.arm.name}: {metrics['hallucinated']:.1f}% hallucinated captions", flush=True)


def make_data(condition: Condition, seed: int, out: Path, *, smoke: bool) -> Path:
    """Return the scored pairs of a data set, made where they are missing."""
    return make_scored_pairs(
        out / "pairs" / f"{slug(condition.name)}-{seed}", start=out / "start", seed=seed, num_pairs=48 if smoke else NUM_PAIRS,
        easy_share=condition.easy_share, label_noise=condition.label_noise,
    )  # fmt: skip


def write_difficulty(cell: Cell, out: Path, scored: Path) -> Path:
    """Return the scored pairs with the difficulty that the arm asks for."""
    source = cell.arm.source
    if source == "estimated":
        return scored
    path = scored.parent / f"{source}-{os.getpid()}.parquet"
    rows = Dataset.from_parquet(str(scored), cache_dir=str(scored.parent / f"cache-{os.getpid()}"))
    if source == "oracle":
        # A pair whose label is wrong is as hard as can be.
        values = [1.0 if flipped else value for value, flipped in zip(rows["truth_difficulty"], rows["truth_flipped"], strict=True)]
    elif source == "shuffled":
        values = np.random.default_rng(cell.seed).permutation(rows["difficulty"]).tolist()
    else:
        values = [1 - value for value in rows[f"easiness_{source}"]]
    rows.remove_columns("difficulty").add_column("difficulty", values).to_parquet(str(path))
    return path


def _best_checkpoint(model: Path, validation: Path) -> Path:
    """Return the checkpoint with the fewest hallucinated captions on the validation scenes; the earliest of equals."""
    checkpoints = sorted((model / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return min(checkpoints, key=lambda path: measure(path, validation, parts=("chair",))["hallucinated"])


def _work(cells: list[Cell], out: Path, smoke: bool) -> None:
    for cell in cells:
        if not cell.path(out).is_file():
            run_cell(cell, out, smoke=smoke)


def main() -> None:
    """Run what is not finished, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/studies/da_dpo"))
    parser.add_argument("--quick", action="store_true", help="two seeds and the most important arms")
    parser.add_argument("--smoke", action="store_true", help="a few steps: checks the path, shows no effect")
    parser.add_argument("--processes", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--report", type=Path, help="folder that da_dpo.md and its pictures are written to, such as docs/studies")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    quiet()
    if not options.report_only:
        start = time.perf_counter()
        model = make_start(options.out / "start", smoke=options.smoke)
        print(f"SFT: {measure_start(model, options.out)['hallucinated']:.1f}% hallucinated captions", flush=True)
        for tier in list_tiers(quick=options.quick):
            # One process a data set, so that no two make the same one.
            sets: dict[tuple[Condition, int], list[Cell]] = {}
            for cell in tier:
                sets.setdefault((cell.condition, cell.seed), []).append(cell)
            run_over_processes(_work, [(those, options.out, options.smoke) for those in sets.values()], processes=options.processes)
        print(f"done in {time.perf_counter() - start:.0f} s")
    names = {slug(arm.name): arm.name for arm in (*CORE, *FURTHER, *WITH_SFT, *GRID)}
    conditions = {slug(one.name): one.name for one in CONDITIONS}
    print(write_report(options.out, options.report or options.out, names=names, conditions=conditions))


if __name__ == "__main__":
    main()

"""Does difficulty-aware DPO hallucinate less on photographs? Arms from one start over seeds, each measured in the same way.

    make real PHOTOS=coco/ BENCHMARKS=benchmarks/                      # first: the start, the scorer, the first seed's three arms
    python -m scripts.real.study --out runs/real-full --seeds 0 1 2    # what is missing
    python -m scripts.real.study --out runs/real-full --minutes 120    # what fits; again to resume
    python -m scripts.real.study --out runs/real-full --report-only --report docs/studies

A seed draws the errors that are put into human captions, scores the difficulty of all pairs, and orders the batches; the answers that were
sampled from the start are those of the main run. What the main run made of its own seed is read and not made again. A finished arm leaves
``OUT/seeds/cells/SEED/ARM.json`` and its answers; its weights are deleted.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from mmalign.files import read_json, read_json_object
from scripts.real.arms import ARMS, CONTROL, TIERS
from scripts.real.cells import FOLDERS, PREFERENCE, Cell, run_chosen
from scripts.real.page import write_page
from scripts.real.run import continued
from scripts.real.steps import BETA, FREEZE, RATE, SIZES, Job, Step, delete_weights, measured, run_step, run_steps
from scripts.studies.study import end_with_parent, main, write_dataset, write_json, write_run

SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
COST = "cost.json"
"""What a training that ran in a process of its own needed."""


def list_cells(seeds: Sequence[int], *, smoke: bool = False) -> list[Cell]:
    """List the arms, the most important ones first; the smoke form has one that needs everything, and one with an adapter."""
    if smoke:
        return [Cell(PREFERENCE, arm, seeds[0]) for arm in ("paper_shuffled", "qlora")]
    return [Cell(PREFERENCE, arm, seed) for tier in TIERS for seed in seeds for arm in tier]


def find_job(options: argparse.Namespace, *, trained: Sequence[str] = ("sft", "scorer")) -> Job:
    """The main run, of which these models are trained.

    Raises:
        SystemExit: If one is not.
    """
    job = Job(out=options.out, sizes=SIZES["small" if options.smoke else options.steps], dtype=options.dtype)
    for name in trained:
        if not (job.out / name / "train_log.json").is_file():
            raise SystemExit(f"{job.out} has no finished {name}: make real comes first; or name its folder with --out")
    return job


def own_seed(job: Job) -> int:
    """The seed of the main run."""
    return int(read_json_object(job.out / "data" / "data.json")["settings"]["seed"])


def seed_folder(job: Job, seed: int) -> Path:
    """Where a seed's pairs and models are: the main run's folder for its own."""
    return job.out if seed == own_seed(job) else job.out / "seeds" / str(seed)


def model_folder(job: Job, cell: Cell) -> Path:
    """Where the arm's model is: in the main run if that trained it."""
    made = job.out / cell.arm
    return made if cell.seed == own_seed(job) and (made / "train_log.json").is_file() else job.out / "seeds" / str(cell.seed) / cell.arm


def list_training(job: Job, cell: Cell, model: Path) -> Step:
    """The command that trains an arm. The seed's pairs are scored by then."""
    if cell.arm == CONTROL:
        return continued(job, model, seed=cell.seed)
    arm, folder = ARMS[cell.arm], seed_folder(job, cell.seed)
    scored = folder / "difficulty" / "scored.parquet"
    betas = {"fixed": [f"--beta {BETA}"], "own": [], "matched": []}[arm.beta]
    if arm.beta == "matched" and scored.is_file():
        betas = [f"--beta {BETA * mean_factor(scored):.4f}"]
    data = shuffle(scored, job.out / "seeds" / str(cell.seed) / "shuffled.parquet", seed=cell.seed) if arm.shuffled else scored
    held = f"{FREEZE} --learning-rate {RATE} --reference copy"
    if arm.adapter:
        held = "--train-projector --learning-rate 3e-4 --reference adapter-off"
    words = " ".join([arm.words, *betas, held])
    return job.preference(data, model, seed=cell.seed, words=words)


def mean_factor(scored: Path) -> float:
    """The mean of what DA-DPO multiplies beta by: 1 + easiness."""
    return 2 - float(np.mean(Dataset.from_parquet(str(scored), columns=["difficulty"])["difficulty"]))


def shuffle(scored: Path, out: Path, *, seed: int) -> Path:
    """Deal the difficulties out anew among the pairs, where that is not done yet and the pairs are there."""
    if scored.is_file() and not out.is_file():
        rows = Dataset.from_parquet(str(scored))
        values = np.random.default_rng(seed).permutation(rows["difficulty"]).tolist()
        write_dataset(out, rows.remove_columns("difficulty").add_column("difficulty", values))
    return out


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Train and measure an arm, keep the numbers, the log and the answers; the weights are deleted."""
    torch.set_num_threads(options.threads)
    job = find_job(options)
    model = model_folder(job, cell)
    if cell.arm != CONTROL:
        run_steps(job.pairs(seed_folder(job, cell.seed), seed=cell.seed))
    run_steps([list_training(job, cell, model)], run=partial(run_alone, threads=options.threads))
    run_steps(job.evaluations(model, model))
    keep(cell.path(options.out), model)
    if model.parent != job.out:
        delete_weights([model])
    return f"{measured(model)['hallucinated']:.1f}% hallucinated captions"


def keep(path: Path, model: Path) -> None:
    """Write a finished cell: what was measured of a model, and what its training took; its log beside it."""
    cost = read_json(model / COST) if (model / COST).is_file() else {}
    write_run(path, measured(model) | cost, model=model)


def run_alone(step: Step, *, threads: int) -> int:
    """Run a training in a process of its own, which measures its time and the most memory that it holds."""
    out = Path(step.words[step.words.index("--out") + 1])
    # The time of what is resumed is not known.
    resumed = out.is_dir()
    process = multiprocessing.get_context("spawn").Process(target=_run_and_measure, args=(step, out, threads, resumed))
    process.start()
    process.join()
    return process.exitcode or 0


def _run_and_measure(step: Step, out: Path, threads: int, resumed: bool) -> None:
    # A stopped study kills its worker, whose child this is.
    end_with_parent()
    torch.set_num_threads(threads)
    start = time.perf_counter()
    if run_step(step) != 0:
        raise SystemExit(1)
    # CPU time is not changed by what else the machine does.
    took = ("minutes", time.perf_counter() - start) if torch.accelerator.is_available() else ("CPU minutes", time.process_time())
    if not resumed:
        write_json(out / COST, {took[0]: took[1] / 60, **peak_memory()})


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held, in GB: the accelerator's where there is one; empty where the system doesn't say."""
    if torch.cuda.is_available():
        return {"peak memory, GB": torch.cuda.max_memory_allocated() / 1e9}
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [1024 * int(line.split()[1]) / 1e9 for line in lines if line.startswith("VmHWM")]
    return {"peak memory, GB": found[0]} if found else {}


def run_study(options: argparse.Namespace) -> None:
    """Run what is missing, one after the other: each training takes all threads."""
    job = find_job(options)
    seeds = options.seeds or ([own_seed(job)] if options.smoke else QUICK_SEEDS if options.quick else SEEDS)
    run_chosen(list_cells(seeds, smoke=options.smoke), run_cell, options)


def choose_seeds(options: argparse.Namespace) -> Sequence[int]:
    """Those that are named; else those of the form."""
    return options.seeds or (QUICK_SEEDS if options.quick or options.smoke else SEEDS)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the choice of cells, and what the main run was given."""
    parser.add_argument("--seeds", type=int, nargs="*", help="these alone")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="runs whose files have these names, without .json")
    add_job_options(parser)


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add what the studies on the main run's models share."""
    parser.add_argument("--steps", choices=[name for name in SIZES if name != "small"], default="full", help="size of the main run")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of forward passes and answers")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each run")
    parser.set_defaults(out=Path("runs/real-full"))


if __name__ == "__main__":
    main(__doc__, name="real", quick="one seed", run=run_study, write_page=write_page, add_options=add_options, folders=FOLDERS)

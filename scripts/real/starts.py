"""Which start, and how many pairs? The axes of "Insights into Alignment" (arXiv:2404.14723) for six objectives on photographs.

    python -m scripts.real.starts --out runs/real-full                   # after make real, whose pairs all arms train on
    python -m scripts.real.starts --out runs/real-full --minutes 120     # what fits; again to resume
    python -m scripts.real.starts --out runs/real-full --report-only --report docs/studies

The starts: ``none`` has seen a sixth of the steps of SFT, just enough to speak; ``sft`` is the main run's; ``instruct`` is ``sft`` after as
many steps as the main run's arms have, on chats of several questions alone. From each, every objective trains for as many steps as the arms
of ``image_terms.py`` and at their rate, with the strength of its paper; nothing is searched. Fewer pairs are the first ones of the same
order, and are seen more often. A seed orders the pairs. A finished arm leaves ``OUT/starts/cells/SEED/ARM.json``; its weights are deleted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset

from scripts.real.arms import AXES, AXIS_OBJECTIVES, AxisArm
from scripts.real.cells import FOLDERS, STARTS, Cell, run_chosen
from scripts.real.image_terms import RATE
from scripts.real.page import write_page
from scripts.real.steps import FREEZE, Job, Step, delete_weights, measured, run_steps
from scripts.real.study import add_options, choose_seeds, find_job
from scripts.studies.objectives_grid import WITHOUT_REFERENCE
from scripts.studies.study import main, write_dataset, write_run

SMOKE = ("cpo-instruct",)


def list_cells(seeds: Sequence[int], *, smoke: bool = False) -> list[Cell]:
    """List the arms, seed by seed; the smoke form has one from a start that is made here."""
    return [Cell(STARTS, arm, seed) for seed in seeds for arm in (SMOKE if smoke else AXES)]


def start_folder(job: Job, start: str) -> Path:
    """Where a start's model is."""
    return job.out / "sft" if start == "sft" else job.out / STARTS / start


def list_start(job: Job, start: str) -> list[Step]:
    """The commands that make and measure a start, none for the main run's."""
    out = start_folder(job, start)
    if start == "sft":
        return []
    if start == "none":
        training = job.sft(job.out / "mllm", out, seed=0, steps=max(job.sizes.sft_steps // 6, 1), learning_rate="2e-4")
    else:
        training = job.sft(job.out / "sft", out, seed=0, steps=job.sizes.preference_steps, learning_rate="2e-5", data=chats(job))
    return [training, *job.evaluations(out, out, instances=False)]


def chats(job: Job) -> Path:
    """Keep the chats of several questions, where that is not done yet and the chats are there."""
    made, out = job.out / "data" / "sft" / "chats.jsonl", job.out / STARTS / "chats.parquet"
    if made.is_file() and not out.is_file():
        write_dataset(out, Dataset.from_json(str(made)).filter(lambda row: len(row["messages"]) > 2))
    return out


def choose_pairs(job: Job, arm: AxisArm, seed: int) -> Path:
    """Keep the first pairs of a seed's order, as many as the arm sees; where that is not done yet and the pairs are there."""
    made, out = job.out / "pairs" / "pairs.jsonl", job.out / STARTS / str(seed) / f"pairs-{arm.part}.parquet"
    if made.is_file() and not out.is_file():
        rows = Dataset.from_json(str(made)).shuffle(seed=seed)
        number = job.sizes.image_term_steps * job.sizes.batch // arm.part
        write_dataset(out, rows.select(range(min(max(number, job.sizes.batch), len(rows)))))
    return out


def list_training(job: Job, arm: AxisArm, seed: int, out: Path) -> Step:
    """The command that trains an arm."""
    reference = "" if arm.objective in WITHOUT_REFERENCE else "--reference copy"
    words = f"--objective {AXIS_OBJECTIVES[arm.objective]} {FREEZE} {reference} --learning-rate {RATE}"
    data, start, steps = choose_pairs(job, arm, seed), start_folder(job, arm.start), job.sizes.image_term_steps
    return job.preference(data, out, seed=seed, words=words, model=start, steps=steps)


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Train and measure an arm, and before the first one its start; keep the numbers and the log."""
    torch.set_num_threads(options.threads)
    job, arm = find_job(options), AXES[cell.arm]
    model = job.out / STARTS / str(cell.seed) / cell.arm
    run_steps(list_start(job, arm.start))
    run_steps([list_training(job, arm, cell.seed, model), *job.evaluations(model, model, instances=False)])
    write_run(cell.path(options.out), measured(model), model=model)
    delete_weights([model])
    return f"{measured(model)['hallucinated']:.1f}% hallucinated captions"


def run_study(options: argparse.Namespace) -> None:
    """Run what is missing."""
    run_chosen(list_cells(choose_seeds(options), smoke=options.smoke), run_cell, options)


if __name__ == "__main__":
    main(__doc__, name="real", quick="one seed", run=run_study, write_page=write_page, add_options=add_options, folders=FOLDERS)

"""Does a term over images make the answer depend on the photograph? Objectives that compare images, against DPO.

    python -m scripts.real.image_terms --out runs/real-full                   # after make real, whose start all arms begin with
    python -m scripts.real.image_terms --out runs/real-full --minutes 120     # what fits; again to resume
    python -m scripts.real.image_terms --out runs/real-full --report-only --report docs/studies

All arms train on the same pairs of similar photographs (``similar.py``), whose rejected answer is true of the other one, and are those of
``scripts/studies/image_terms.py`` on the embedded world. Nothing is searched: beta is 0.1, and fewer steps than those of the preference
arms have a higher rate. A seed matches the photographs and orders the batches. How much an answer depends on its photograph is read from
its log-probability given the own one, the other one and a crop, on validation photographs. A finished arm leaves
``OUT/image_terms/cells/SEED/ARM.json``; its weights are deleted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from mmalign.difficulty.fuse import CACHED
from scripts.real.cells import FOLDERS, IMAGE_TERMS, Cell, run_chosen
from scripts.real.page import write_page
from scripts.real.steps import BETA, FREEZE, Job, Step, delete_weights, measured, quoted, run_steps
from scripts.real.study import add_options, choose_seeds, find_job
from scripts.studies.image_terms_grid import ARMS, SFT, Arm
from scripts.studies.image_worth import MEASURED, by_asked, image_metrics
from scripts.studies.study import main, slug, write_json, write_run
from scripts.studies.world import load_copy

RATE = "1e-4"
NUM_HELD_OUT = 300
"""Validation photographs of the held-out rows."""
# Grey training photographs are not made: the blind control here is the start, asked on grey ones.
BY_SLUG = {slug(arm.name): arm for arm in ARMS if not arm.blind}
SMOKE = ("s-vco",)


def list_cells(seeds: Sequence[int], *, smoke: bool = False) -> list[Cell]:
    """List the arms, seed by seed; the smoke form has one that needs the other photograph."""
    return [Cell(IMAGE_TERMS, arm, seed) for seed in seeds for arm in (SMOKE if smoke else BY_SLUG)]


def list_rows(job: Job, seed: int) -> list[Step]:
    """The commands that match similar photographs: a seed's to train on, and the held-out ones."""
    made = f"scripts.real.similar --data {job.path('data')}"
    train, held_out = train_rows(job, seed), held_out_rows(job)
    return [
        Step.of(train, f"{made} --seed {seed} --out {quoted(train.parent)}"),
        Step.of(held_out, f"{made} --part val --num-photos {NUM_HELD_OUT} --out {quoted(held_out.parent)}"),
    ]


def train_rows(job: Job, seed: int) -> Path:
    """The rows that a seed trains on."""
    return job.out / "image_terms" / str(seed) / "rows" / "pairs.jsonl"


def held_out_rows(job: Job) -> Path:
    """The rows that all models are measured on."""
    return job.out / "image_terms" / "held_out" / "pairs.jsonl"


def list_training(job: Job, arm: Arm, seed: int, out: Path) -> Step:
    """The command that trains an arm."""
    held = f"{FREEZE} --reference copy --learning-rate {RATE} --beta {BETA}"
    words = f"--objective {arm.objective} --weaken {arm.weaken} {held}"
    return job.preference(train_rows(job, seed), out, seed=seed, words=words, steps=job.sizes.image_term_steps)


def list_measuring(job: Job, model: Path, out: Path) -> Step:
    """The command that computes log-probabilities of the held-out answers given each image."""
    line = f"mmalign cache-logps {quoted(held_out_rows(job))} --image-root {job.path('data', 'images')} --model {quoted(model)}"
    line += f" --objective {' '.join(MEASURED)} --dtype {job.dtype} --batch-size 16 --out {quoted(out)}"
    return Step.of(out / CACHED, line)


def image_worth(model: Path, start: Path) -> dict[str, float]:
    """How much answers owe to the photograph, from both models' log-probabilities."""
    policy = load_copy(model / CACHED)
    return image_metrics(policy, load_copy(start / CACHED), groups=by_asked(policy))


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Train and measure an arm, and before the first one the start; keep the numbers and the log."""
    torch.set_num_threads(options.threads)
    job = find_job(options)
    folder = job.out / "image_terms"
    model, start = folder / str(cell.seed) / cell.arm, folder / "start"
    training = list_training(job, BY_SLUG[cell.arm], cell.seed, model)
    run_steps([*list_rows(job, cell.seed), list_measuring(job, job.out / "sft", start), training])
    run_steps([*job.evaluations(model, model, instances=False), list_measuring(job, model, model / "logps")])
    write_json(folder / f"{SFT}.json", image_worth(start, start))
    metrics = image_worth(model / "logps", start)
    write_run(cell.path(options.out), measured(model) | metrics, model=model)
    delete_weights([model])
    return f"{metrics['own - other']:.1f} nats from the photograph"


def run_study(options: argparse.Namespace) -> None:
    """Run what is missing."""
    run_chosen(list_cells(choose_seeds(options), smoke=options.smoke), run_cell, options)


if __name__ == "__main__":
    main(__doc__, name="real", quick="one seed", run=run_study, write_page=write_page, add_options=add_options, folders=FOLDERS)

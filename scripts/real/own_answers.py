"""What is learnt from as many own answers on photographs? Online against offline, scorers of pairs, and distillation on own captions.

    python -m scripts.real.own_answers --out runs/real-full                  # after make real, from whose start all arms are trained
    python -m scripts.real.own_answers --out runs/real-full --minutes 120    # what fits; again to resume
    python -m scripts.real.own_answers --out runs/real-full --report-only --report docs/studies

A seed draws photographs of the main run's pairs, one for each place in the run, and orders them. To each the model in training gives as
many answers as the main run sampled, or the start has given them before; they are scored by the photograph's objects. Two arms pair the
same answers without any truth: by the contrastive scorer, or by questions that the start answers itself. ``mimic`` arms have the main run's
DPO model as their teacher, on human captions of the photographs or on the student's own. All train for as many steps as the arms of
``image_terms.py`` and at their rate. A finished arm leaves ``OUT/own_answers/cells/SEED/ARM.json``; its weights are deleted.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmalign.data.datasets import load_rows
from mmalign.evaluation.rows import read_jsonl
from mmalign.files import read_json, whole
from scripts.real.arms import OWN_ARMS, OwnArm
from scripts.real.cells import FOLDERS, OWN_ANSWERS, Cell, run_chosen
from scripts.real.data import write_lines
from scripts.real.image_terms import RATE
from scripts.real.page import ALIKE, write_page
from scripts.real.page import COST as COSTS
from scripts.real.steps import FREEZE, Job, Step, delete_weights, measured, quoted, run_steps
from scripts.real.study import COST, add_options, choose_seeds, find_job, run_alone
from scripts.studies.study import main, write_run

SMOKE = ("online-dpo", "offline-dpo-clip", "mimic-own")


def list_cells(seeds: Sequence[int], *, smoke: bool = False) -> list[Cell]:
    """List the arms, seed by seed; the smoke form has one of each kind."""
    return [Cell(OWN_ANSWERS, arm, seed) for seed in seeds for arm in (SMOKE if smoke else OWN_ARMS)]


def questions_per_step(job: Job) -> int:
    """Half of what the other trainings have as a batch, as each question has several answers."""
    return max(job.sizes.batch // 2, 1)


def write_photos(job: Job, seed: int) -> Path:
    """Keep a seed's photographs in CHAIR's form, and human captions of them as chats; where that is not done yet and they are there."""
    data, out = job.out / "data", job.out / OWN_ANSWERS / str(seed) / "photos"
    if out.is_dir() or not (data / "photos.jsonl").is_file():
        return out
    rows = read_jsonl(data / "pair_photos" / "chair.jsonl")
    number = job.sizes.image_term_steps * questions_per_step(job)
    chosen = [rows[i] for i in np.random.default_rng([seed, 7]).permutation(len(rows))[:number]]
    said = {row["id"]: row["captions"][0] for row in read_jsonl(data / "photos.jsonl")}
    with whole(out) as folder:
        folder.mkdir(parents=True)
        for name in ("coco_objects.json", "synonyms.txt"):
            (folder / name).write_bytes((data / "pair_photos" / name).read_bytes())
        write_lines(folder / "chair.jsonl", chosen)
        write_lines(folder / "chats.jsonl", [as_chat(row, said[row["id"]]) for row in chosen])
    return out


def as_chat(row: dict[str, Any], caption: str) -> dict[str, Any]:
    """A question and a human answer, as training reads them."""
    turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": caption}]
    return {"id": row["id"], "images": [row["image"]], "messages": turns}


def sampled_folder(job: Job, arm: OwnArm, seed: int) -> Path:
    """Where the start's answers and their pairs are."""
    return job.out / OWN_ANSWERS / str(seed) / f"sampled-{arm.scorer.split()[0]}"


def list_training(job: Job, arm: OwnArm, seed: int, out: Path) -> list[Step]:
    """The commands that train an arm, and before it sample and pair the start's answers where it learns from those."""
    photos, start, images = write_photos(job, seed), job.path("sft"), job.path("data", "images")
    shared = f"{job.training(seed)} --batch-size {questions_per_step(job)} --max-steps {job.sizes.image_term_steps}"
    shared += f" {FREEZE} --learning-rate {RATE} --logging-steps 1 {arm.words} --out {quoted(out)}"
    longest = job.sizes.caption_tokens
    done = out / "train_log.json"
    if "--on-policy" in arm.words:
        line = f"mmalign train mimic --data {quoted(photos / 'chats.jsonl')} --model {start} --teacher {job.path('dpo')}"
        return [Step.of(done, f"{line} --sample-tokens {longest} {shared}")]
    if not arm.scorer:
        line = f"mmalign train online --data {quoted(photos / 'chair.jsonl')} --model {start} --reward objects:{quoted(photos)}"
        return [Step.of(done, f"{line} --samples {job.sizes.samples} --max-new-tokens {longest} {shared}")]
    sampled = sampled_folder(job, arm, seed)
    line = f"data_tools/sample_pairs.py {quoted(photos)} --image-root {images} --model {start} --dtype {job.dtype} --seed {seed}"
    line += f" --samples {job.sizes.samples} --top-p 1 --max-new-tokens {longest} --no-embed-images --scorer {arm.scorer}"
    line += f" --labeler {job.path('scorer')}" if arm.scorer == "clip" else ""
    return [
        Step.of(sampled / "pairs", f"{line} --out {quoted(sampled)}"),
        Step.of(done, f"mmalign train preference --data {quoted(sampled / 'pairs')} --model {start} {shared}"),
    ]


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Train and measure an arm; keep the numbers, what they took, and the log."""
    torch.set_num_threads(options.threads)
    job, arm = find_job(options), OWN_ARMS[cell.arm]
    model = job.out / OWN_ANSWERS / str(cell.seed) / cell.arm
    steps = list_training(job, arm, cell.seed, model)
    run_steps(steps, run=partial(run_alone, threads=options.threads))
    run_steps(job.evaluations(model, model, instances=False))
    folders = [model] if len(steps) == 1 else [sampled_folder(job, arm, cell.seed), model]
    write_run(cell.path(options.out), measured(model) | read_costs(folders) | read_alike(job, arm, cell.seed, model), model=model)
    delete_weights([model])
    return f"{measured(model)['hallucinated']:.1f}% hallucinated captions"


def read_costs(folders: Sequence[Path]) -> dict[str, float]:
    """What sampling and training took together; empty where one of them was stopped in between."""
    if not all((folder / COST).is_file() for folder in folders):
        return {}
    costs = [read_json(folder / COST) for folder in folders]
    return {key: (max if "memory" in key else sum)(cost[key] for cost in costs) for key in COSTS if all(key in cost for cost in costs)}


def read_alike(job: Job, arm: OwnArm, seed: int, model: Path) -> dict[str, float]:
    """The share of photographs whose answers teach nothing, as they are scored alike; empty for arms without scores."""
    if arm.scorer:
        sampled = sampled_folder(job, arm, seed)
        asked = len(read_jsonl(write_photos(job, seed) / "chair.jsonl"))
        return {ALIKE: 100 - 100 * len(load_rows(sampled / "pairs")) / asked}
    alike = [entry["online/alike"] for entry in read_json(model / "train_log.json") if "online/alike" in entry]
    return {ALIKE: 100 * sum(alike) / len(alike)} if alike else {}


def run_study(options: argparse.Namespace) -> None:
    """Run what is missing."""
    run_chosen(list_cells(choose_seeds(options), smoke=options.smoke), run_cell, options)


if __name__ == "__main__":
    main(__doc__, name="real", quick="one seed", run=run_study, write_page=write_page, add_options=add_options, folders=FOLDERS)

"""DHO on photographs under a real zero-shot teacher: do two heads pay where the teacher was trained on captions and has biases of its own?

    python -m scripts.real.dho --out runs/real-full --cifar cifar10/       # after make real, whose scorer is the teacher
    python -m scripts.real.dho --out runs/real-full --minutes 60           # COCO alone, what fits; again to resume
    python -m scripts.real.dho --out runs/real-full --report-only --report docs/studies

The teacher is the contrastive scorer with "a photo of a CLASS." for each class. Photographs are CIFAR-10's (train*.parquet and
test*.parquet with the columns image and label), and those of COCO that show one of the classes with known instances: those that the scorer
saw captions of to train on, the others to test on. A seed draws the labelled images, the heads and the order. Each cell is
one ``mmalign classifier train``; the teacher's logits are computed once. A finished cell leaves ``OUT/dho/cells/SEED/NAME.json``.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

from mmalign.evaluation.rows import read_jsonl
from mmalign.files import read_json, whole
from scripts.real.cells import run_chosen
from scripts.real.dho_cells import COCO, DHO, IMAGES, LABELS, QUICK_SEEDS, SEEDS, STUDENTS, TEACHER, Cell, list_cells
from scripts.real.dho_page import write_page
from scripts.real.photos import Photo, read_photo_row
from scripts.real.steps import Job, Step, delete_weights, quoted, run_steps
from scripts.real.study import add_options as add_study_options
from scripts.real.study import find_job
from scripts.studies.dho_cells import score
from scripts.studies.study import main, write_run

BATCH = 32
PARTS = {"train": ("sft",), "test": ("pairs", "existence", "val")}
"""Of the photographs; the scorer was trained on captions of the first."""
MOST, FEWEST = 100, 3
"""Photographs of a class in each split: more are left out, as most show a person; classes with fewer are left out."""


def choose_photos(photos: Iterable[Photo], *, seed: int, fewest: int) -> dict[str, list[Photo]]:
    """Choose photographs that show one known object: class -> photographs in a random order."""
    found: dict[str, list[Photo]] = {}
    for photo in photos:
        if photo.instances is not None and len(photo.instances) == 1:
            found.setdefault(next(iter(photo.instances)), []).append(photo)
    rng = np.random.default_rng([seed, 6])
    chosen = {}
    for name, mine in sorted(found.items()):
        if len(mine) >= fewest:
            chosen[name] = [mine[i] for i in rng.permutation(len(mine))][:MOST]
    return chosen


def write_coco(data: Path, out: Path, *, fewest: int = FEWEST) -> None:
    """Write ``train.parquet`` and ``test.parquet`` of the photographs that show one object; the folder is there whole or not at all.

    Raises:
        SystemExit: If fewer than two classes have photographs enough.
    """
    rows = read_jsonl(data / "photos.jsonl")
    # A photograph may be of several parts.
    pools = {split: {row["image"]: read_photo_row(row) for row in rows if row["part"] in parts} for split, parts in PARTS.items()}
    chosen = {split: choose_photos(photos.values(), seed=0, fewest=fewest) for split, photos in pools.items()}
    classes = sorted(set(chosen["train"]) & set(chosen["test"]))
    if len(classes) < 2:
        raise SystemExit(f"{len(rows)} photographs have {len(classes)} classes that {fewest} or more show alone, of both splits")
    features = Features({"image": Image(), "label": ClassLabel(names=classes), "id": Value("string")})
    with whole(out) as folder:
        folder.mkdir(parents=True)
        for split, found in chosen.items():
            shown = [(photo.image, label) for label, name in enumerate(classes) for photo in found[name]]
            table: dict[str, list[Any]] = {
                "image": [{"bytes": (data / "images" / image).read_bytes(), "path": None} for image, _ in shown],
                "label": [label for _, label in shown],
                "id": [image for image, _ in shown],
            }
            Dataset.from_dict(table, features=features).to_parquet(str(folder / f"{split}.parquet"))


def training_line(job: Job, images: str, source: Path, *, student: str, labels: str, seed: int, steps: int) -> str:
    """What all trainings on a set of photographs share."""
    about, network = IMAGES[images], STUDENTS[student]
    line = f"mmalign classifier train --data {quoted(source)} --test-data {quoted(source)} --cache {job.path('dho', images)}"
    line += f" --image-size {about.size} --augmentation {about.augmentation} --validation-share {about.validation_share} {LABELS[labels]}"
    line += f" --split-seed {seed} --seed {seed} --max-steps {steps} --batch-size {BATCH} --warmup-ratio 0.05 --logging-steps 50"
    line += f" --learning-rate {network.learning_rate} --backbone {network.backbone}"
    line += """ --trainer "{disable_tqdm: true, save_strategy: 'no'}" """
    if not network.pretrained:
        return f"{line} --no-pretrained"
    weights = json.dumps({"pretrained_cfg_overlay": {"file": str(job.out / "parts" / "tower_timm.safetensors")}})
    return f"{line} --backbone-options '{weights}'"


def score_teacher(job: Job, images: str, source: Path) -> tuple[Path, float]:
    """Compute the teacher's logits of all photographs, by one step of a training that keeps them.

    Returns:
        The file of the logits, and their accuracy on test images in percent.
    """
    out = job.out / DHO / f"teacher-{images}"
    line = training_line(job, images, source, student="resnet10t", labels="10%", seed=0, steps=1)
    line += f" --teacher {job.path('scorer')} --teacher-kind zero-shot --form kd-only --out {quoted(out)}"
    run_steps([Step.of(out / "classifier.json", line)])
    (logits,) = (job.out / DHO / images).glob("teacher-*.safetensors")
    return logits, 100 * read_json(out / "classifier.json")["test"]["teacher"]["accuracy"]


def find_source(images: str, options: argparse.Namespace) -> Path:
    """Where the photographs are; those of COCO are made."""
    if images != COCO:
        return Path(options.cifar)
    out: Path = options.out / DHO / "photographs"
    if not out.is_dir():
        write_coco(options.out / "data", out, fewest=1 if options.smoke else FEWEST)
    return out


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Train one student and keep its numbers; the weights are deleted."""
    torch.set_num_threads(options.threads)
    job, source = find_job(options, trained=("scorer",)), find_source(cell.images, options)
    logits, accuracy = score_teacher(job, cell.images, source)
    out = job.out / DHO / str(cell.seed) / cell.name
    # It keeps no checkpoints: a stopped one begins anew.
    shutil.rmtree(out, ignore_errors=True)
    steps = job.sizes.classifier_steps
    line = training_line(job, cell.images, source, student=cell.student, labels=cell.labels, seed=cell.seed, steps=steps)
    teacher = "" if cell.form == "ce-only" else f"--teacher {quoted(logits)} --teacher-kind logits"
    start = time.perf_counter()
    run_steps([Step.of(out / "classifier.json", f"{line} --form {cell.form} {teacher} --out {quoted(out)}")])
    metrics = read_metrics(read_json(out / "classifier.json")) | {TEACHER: accuracy, "seconds": time.perf_counter() - start}
    write_run(cell.path(options.out), metrics, model=out)
    delete_weights([out])
    return f"{metrics['accuracy']:.1f}% on test images"


def read_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies in percent of what the form is used by and of each head, and the calibration error."""
    run = dict(report)
    heads = [head for head in ("ce_head", "kd_head", "published") if head in run["test"]]
    metrics = {"accuracy": score(run), "validation": score(run, part="validation"), "calibration error": score(run, metric="ece")}
    return metrics | {head: score(run, head) for head in heads} | {"labels": run["num_labeled"]}


def run_study(options: argparse.Namespace) -> None:
    """Run what is missing, one after the other; without --cifar on COCO's photographs alone."""
    images = [name for name in IMAGES if name == COCO or options.cifar is not None]
    seeds = options.seeds or (QUICK_SEEDS if options.quick or options.smoke else SEEDS)
    run_chosen(list_cells(images, seeds, smoke=options.smoke), run_cell, options)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add CIFAR-10's folder to the options of the studies on the main run's models."""
    add_study_options(parser)
    parser.add_argument("--cifar", type=Path, help="folder with train and test parquet files (columns image, label); COCO alone without it")


if __name__ == "__main__":
    main(
        __doc__, name="real_dho", quick="one seed", run=run_study, write_page=write_page, add_options=add_options, folders=(f"{DHO}/cells",)
    )

"""When do two heads pay? DHO (arXiv:2505.07675) against one head, label shares by teacher accuracies, on CIFAR-10's photographs.

    python -m scripts.studies.dho --data cifar10 --quick                       # five minutes on two cores
    python -m scripts.studies.dho --data cifar10 --processes 2                 # five seeds, hours
    python -m scripts.studies.dho --data cifar10 --minutes 30                  # what fits; again to resume
    python -m scripts.studies.dho --data cifar10 --report-only

--data is a folder with train and test parquet files (columns image, label). The training images are halved: one half, with all its
labels, is the teacher's; the other the student's, of which 1,000 tune the mixing. Each cell is one `mmalign classifier train`; finished
ones are kept in --out and never run again. Cells run in order of importance, so that a stop leaves the widest picture.
"""

import argparse
import shutil
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from mmalign.classifier.class_logits import load_class_logits, save_class_logits
from mmalign.classifier.labeled_images import LabeledImages, load_labeled_images
from mmalign.classifier.splits import Indices, LabelSplit, draw_split, save_split
from mmalign.files import read_json
from scripts.studies.dho_cells import (
    BATCH,
    BLIND_CLASSES,
    CLOSED_FORM,
    CORRECTED,
    DISCOVERED,
    DOMAIN_LABELS,
    LABELS,
    REAL_TEACHERS,
    STEPS,
    Cell,
    list_cells,
)
from scripts.studies.dho_domains import (
    discover_words,
    domain_folder,
    domain_words,
    label_folder,
    measure_teachers,
    save_clusters,
    save_domains,
    teacher_file,
)
from scripts.studies.dho_page import write_page
from scripts.studies.study import main, run_missing, run_mmalign, write_json

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies"
# Two sizes of student; the teacher has a network of its own.
NETWORKS = {
    "small": "{channels: [16, 32, 64, 128], stem_width: 8}",
    "medium": "{channels: [24, 48, 96, 192], stem_width: 12}",
    "teacher": "{channels: [24, 48, 96, 192], stem_width: 12}",
}


def training_words(options: argparse.Namespace, network: str, *, steps: int, batch: int, data: Path | None = None) -> list[str]:
    """What all runs share."""
    words = ["classifier", "train", "--data", str(data or options.data), "--cache", str(options.out / "cache"), "--no-pretrained"]
    words += ["--backbone", "resnet10t", "--backbone-options", NETWORKS[network], "--image-size", "32", "--augmentation", "pad-crop"]
    words += ["--max-steps", str(steps), "--batch-size", str(batch), "--learning-rate", "2e-3", "--warmup-ratio", "0.05"]
    return [*words, "--logging-steps", "50", "--trainer", "{disable_tqdm: true, save_strategy: 'no'}"]


def prepare(options: argparse.Namespace) -> Indices:
    """Draw the splits, train the real teachers, correct some errors of the strongest; return the student's images."""
    data = load_labeled_images(options.data, split="train")
    own = save_splits(options, data)
    for name, steps in REAL_TEACHERS.items():
        train_teacher(options, name, steps)
    base = options.out / "cache" / "real.safetensors"
    if not base.is_file():
        score_real_teacher(options, base)
    save_changed_teachers(options, data, base, own)
    return own


def prepare_domains(options: argparse.Namespace, own: Indices, seed: int) -> None:
    """Deal photographs out to domains, train the domain classifier, find the classes by each number of labels, and cluster the features."""
    save_domains(options, own, seed)
    log = options.out / "log.txt"
    classifier = domain_folder(options.out, seed) / "classifier"
    if not (classifier / "classifier.json").is_file():
        shutil.rmtree(classifier, ignore_errors=True)
        words = training_words(options, "teacher", steps=20 if options.smoke else STEPS, batch=64, data=domain_folder(options.out, seed))
        run_mmalign([*words, *domain_words(options.out, seed)], log)
    for labels in DOMAIN_LABELS:
        if not teacher_file(options.out, "k-means", labels, seed).is_file():
            run_mmalign(discover_words(options.out, labels, seed), log)
            save_clusters(options.out, labels, seed)
        found = measure_teachers(options.out, labels, seed)
        print(f"domains {seed}, {labels}: discovered {found['discovered']:.1%}, k-means {found['k-means']:.1%}", flush=True)


def save_splits(options: argparse.Namespace, data: LabeledImages) -> Indices:
    """Halve the images for the teacher and the student, and draw the student's labels; return the student's images."""
    halves = draw_split(data.labels, num_classes=len(data.classes), seed=0, share=0.5)
    if options.smoke:
        halves = LabelSplit(halves.labeled[:400], halves.unlabeled[:2600], halves.validation)
    own, nothing, folder = halves.unlabeled, np.zeros(0, dtype=np.int64), options.out / "splits"
    save_split(folder / "teacher.json", LabelSplit(halves.labeled, nothing, nothing), data.ids)
    validation = np.sort(np.random.default_rng(0).permutation(own)[: 100 if options.smoke else 1000])
    pool = np.setdiff1d(own, validation)
    for name, number in LABELS.items():
        for seed in range(5):
            share = min(1.0, number / len(pool))
            drawn = draw_split(data.labels[pool], num_classes=len(data.classes), seed=100 + seed, share=share)
            split = LabelSplit(pool[drawn.labeled], pool[drawn.unlabeled], validation)
            save_split(folder / f"{number}-{seed}.json", split, data.ids, labels=name)
    return own


def train_teacher(options: argparse.Namespace, name: str, steps: int) -> None:
    """Train a real teacher on all labels of its half, if it is not trained yet."""
    folder = options.out / f"teacher-{name}"
    if (folder / "classifier.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    words = training_words(options, "teacher", steps=4 if options.smoke else steps, batch=64)
    words += ["--form", "ce-only", "--split-file", str(options.out / "splits" / "teacher.json")]
    run_mmalign([*words, "--test-data", str(options.data), "--out", str(folder)], options.out / "log.txt")
    print(f"teacher {name}: {read_json(folder / 'classifier.json')['test']['ce_head']['accuracy']:.1%} on test images", flush=True)


def save_changed_teachers(options: argparse.Namespace, data: LabeledImages, base: Path, own: Indices) -> None:
    """Change the strongest teacher's logits: some of its errors mended, or some classes never named.

    Args:
        options: The study's.
        data: All images.
        base: The teacher's logits.
        own: The student's images, on which the accuracy counts.
    """
    truth = torch.from_numpy(data.labels)
    real = load_class_logits(base, ids=data.ids, classes=data.classes).logits[:, 0]
    guess = real.argmax(-1)
    for accuracy in CORRECTED:
        path = options.out / "cache" / f"corrected {accuracy:.0%}.safetensors"
        now = (guess == truth)[own].double().mean().item()
        share = max(0.0, (accuracy - now) / (1 - now))
        mended = torch.from_numpy(np.random.default_rng(1).random(len(truth)) < share) & (guess != truth)
        logits = real.clone()
        rows = mended.nonzero()[:, 0]
        logits[rows, truth[rows]], logits[rows, guess[rows]] = real[rows, guess[rows]], real[rows, truth[rows]]
        save_class_logits(path, ids=data.ids, classes=data.classes, logits=logits, source=f"real teacher, {share:.0%} of its errors mended")
    blind = real.clone()
    blind[:, :BLIND_CLASSES] -= 10.0
    source = f"real teacher without {', '.join(data.classes[:BLIND_CLASSES])}"
    save_class_logits(options.out / "cache" / "blind.safetensors", ids=data.ids, classes=data.classes, logits=blind, source=source)


def score_real_teacher(options: argparse.Namespace, path: Path) -> None:
    """Run the strongest teacher over all images, by one step of a run that caches it."""
    folder = options.out / "scoring"
    shutil.rmtree(folder, ignore_errors=True)
    words = training_words(options, "small", steps=1, batch=8)
    words += ["--teacher", str(options.out / "teacher-real"), "--teacher-kind", "classifier"]
    words += ["--split-file", str(options.out / "splits" / "115-0.json"), "--out", str(folder)]
    run_mmalign(words, options.out / "log.txt")
    for found in (options.out / "cache").glob("teacher-*.safetensors"):
        with safe_open(found, framework="pt") as file:
            if file.metadata()["source"].endswith("teacher-real"):
                shutil.copy(found, path)
    shutil.rmtree(folder)


def teacher_words(cell: Cell, options: argparse.Namespace) -> list[str]:
    """The teacher of a cell: a classifier, or a file of logits."""
    if cell.teacher in REAL_TEACHERS:
        return ["--teacher", str(options.out / f"teacher-{cell.teacher}"), "--teacher-kind", "classifier"]
    if cell.teacher in DISCOVERED:
        return ["--teacher", str(teacher_file(options.out, cell.teacher, cell.labels, cell.seed)), "--teacher-kind", "logits"]
    if cell.teacher != "none":
        return ["--teacher", str(options.out / "cache" / f"{cell.teacher}.safetensors"), "--teacher-kind", "logits"]
    return []


def add_closed_form(result: dict[str, Any], cell: Cell, options: argparse.Namespace, student: Path) -> None:
    """Fit every head in closed form on the student's features, and put their scores beside its own heads'."""
    split = options.out / "splits" / f"{LABELS[cell.labels]}-{cell.seed}.json"
    for name, (kernel, labels) in CLOSED_FORM.items():
        out = student / name.replace(", ", "-")
        words = [
            "classifier",
            "fit-head",
            "--data",
            str(options.data),
            "--cache",
            str(options.out / "cache"),
            "--test-data",
            str(options.data),
        ]
        words += ["--classifier", str(student), "--split-file", str(split), "--kernel", kernel, "--labels", labels, "--out", str(out)]
        words += [] if labels == "true" else teacher_words(cell, options)
        run_mmalign(words, options.out / "logs" / f"{cell.name}.txt")
        fitted = read_json(out / "classifier.json")
        for part in ("validation", "test"):
            result[part][name] = fitted[part]["ce_head"]
        result.setdefault("chosen", {})[name] = fitted["chosen"]


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Train one student and keep its numbers; the weights are deleted."""
    cpu = time.process_time()
    folder = options.out / "runs" / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    data, split = options.data, options.out / "splits" / f"{LABELS[cell.labels]}-{cell.seed}.json"
    if cell.data == "domains":
        data, split = domain_folder(options.out, cell.seed), label_folder(options.out, cell.labels, cell.seed) / "split.json"
    words = training_words(options, cell.student, steps=4 if options.smoke else cell.steps, batch=BATCH, data=data)
    words += ["--split-file", str(split), "--seed", str(cell.seed)]
    form = "dual-head" if cell.form == "closed-form" else cell.form
    words += ["--form", form, "--label-weight", str(cell.label_weight), "--test-data", str(data), "--out", str(folder)]
    words += teacher_words(cell, options)
    words += {"centre": [], "fixed": ["--teacher-views", "4"], "live": ["--teacher-mode", "live"]}[cell.views]
    if cell.form in ("dual-head", "single-head"):
        words += ["--gradient-cosine-every", "50"]
    log = options.out / "logs" / f"{cell.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    run_mmalign(words, log)
    result = read_json(folder / "classifier.json")
    cosines = [entry["dual_head/gradient_cosine"] for entry in read_json(folder / "train_log.json") if "dual_head/gradient_cosine" in entry]
    if cell.data == "domains":
        result["teachers"] = measure_teachers(options.out, cell.labels, cell.seed)
    if cell.form == "closed-form":
        add_closed_form(result, cell, options, folder)
    result |= {"cell": asdict(cell), "gradient_cosine": cosines, "cpu_seconds": time.process_time() - cpu}
    write_json(cell.path(options.out), result)
    log.unlink()
    shutil.rmtree(folder)
    test = result["test"]
    return f"{test['mixed' if 'mixed' in test else 'ce_head']['accuracy']:.1%} on test images"


def run_study(options: argparse.Namespace) -> None:
    """Prepare, and run what is missing."""
    own = prepare(options)
    cells = list_cells(quick=options.quick)
    if options.smoke:
        beside = [cell for cell in list_cells(quick=False) if cell.beside]
        first = {(cell.form, cell.data == "domains" and cell.teacher): cell for cell in reversed(beside)}
        cells = cells[:2] + list(first.values()) + [cell for cell in cells if cell.labels == "10%"][:8]
    for seed in sorted({cell.seed for cell in cells if cell.data == "domains" and not cell.path(options.out).is_file()}):
        prepare_domains(options, own, seed)
    run_missing(cells, partial(run_cell, options=options), options)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the photographs; the page goes to the docs if not told otherwise."""
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test parquet files")
    parser.add_argument("--page", type=Path, dest="report", help="another name of --report, which is docs/studies here if not given")
    parser.set_defaults(report=PAGE)


if __name__ == "__main__":
    quick = "one seed, a coarse map, two label shares"
    main(__doc__, name="dho", quick=quick, run=run_study, write_page=write_page, add_options=add_options)

"""What do a few labels give on frozen features? Heads in closed form against a trained one, on CIFAR-10's photographs.

    python -m scripts.studies.frozen_heads --data cifar10 --weights parts/tower_timm.safetensors --processes 2    # all; again to resume
    python -m scripts.studies.frozen_heads --data cifar10 --weights parts/tower_timm.safetensors --quick          # one seed
    python -m scripts.studies.frozen_heads --data cifar10 --report-only

--data is a folder with train and test parquet files (columns image, label), --weights those of an EfficientNet-Lite0 as
``scripts/real/parts.py`` makes them. A seed draws the labels, the random weights and the order of the batches. Heads in closed form are
`mmalign classifier fit-head`, whose numbers the labelled images choose; the trained one is `classifier train --freeze-backbone`.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmalign.files import read_json
from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.small_sets import draw_images
from scripts.studies.study import ArmCell, main, run_missing, run_mmalign, slug, write_json

COMMAND = "python -m scripts.studies.frozen_heads --data cifar10 --weights parts/tower_timm.safetensors --processes 2 --report docs/studies"
SEEDS = (0, 1, 2, 3, 4)
SHOTS = {"4 labels per class": 4, "10": 10, "100": 100}
FEATURES = ("ImageNet's", "random")
HEADS = ("kernel", "ridge", "trained")
STEPS, BATCH, RATE, SIDE = 200, 32, "2e-3", 96
TRAIN_IMAGES, TEST_IMAGES, SMOKE_IMAGES = 10_000, 2_000, 120
ABOUT = """Accuracy in percent on {images:,} of CIFAR-10's test images of heads on the frozen features of an EfficientNet-Lite0 at {side}
pixels, as it was trained on ImageNet, and with random weights. `kernel` and `ridge` are computed; `trained` is a linear head after {steps}
steps of {batch} images at {rate}, nothing searched. Means over seeds with 95% intervals (Student's t); differences are paired by seed, with
the p-value of the t-test and no correction for looking at many."""


@dataclass(frozen=True)
class Arm:
    """A head on features."""

    features: str
    head: str

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.head} on {self.features} features"


ARMS = tuple(Arm(features, head) for features in FEATURES for head in HEADS)


Cell = ArmCell[Arm]


def list_cells(*, quick: bool, smoke: bool) -> list[Cell]:
    """List the cells, seed by seed."""
    return [Cell(arm, seed) for seed in (SEEDS[:1] if quick or smoke else SEEDS) for arm in ARMS]


def head_words(cell: Cell, options: argparse.Namespace) -> list[object]:
    """The command of a cell, without its labels and its folder."""
    shared: list[object] = ["--data", options.out / "images", "--cache", options.out / "cache", "--test-data", options.out / "images"]
    shared += ["--backbone", "tf_efficientnet_lite0", "--image-size", 32 if options.smoke else SIDE, "--seed", cell.seed]
    overlay = json.dumps({"pretrained_cfg_overlay": {"file": str(options.weights)}})
    shared += ["--no-pretrained"] if cell.arm.features == "random" else ["--backbone-options", overlay]
    if cell.arm.head != "trained":
        return ["classifier", "fit-head", *shared, "--kernel", "hilbert" if cell.arm.head == "kernel" else "ridge"]
    words: list[object] = ["classifier", "train", *shared, "--form", "ce-only", "--freeze-backbone", "--augmentation", "none"]
    words += ["--max-steps", 2 if options.smoke else STEPS, "--batch-size", BATCH, "--learning-rate", RATE, "--warmup-ratio", 0.05]
    return [*words, "--logging-steps", 50, "--trainer", "{disable_tqdm: true, save_strategy: 'no'}"]


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Make and measure the head for each number of labels; what is saved of it is deleted."""
    found, folder = {}, options.out / "runs" / cell.slug
    for name, shots in SHOTS.items():
        shutil.rmtree(folder, ignore_errors=True)
        labels = ["--shots", min(shots, 4) if options.smoke else shots, "--split-seed", cell.seed]
        words = [*head_words(cell, options), *labels, "--out", folder]
        run_mmalign(words, options.out / "logs" / f"{folder.name}.txt")
        found[name] = 100 * read_json(folder / "classifier.json")["test"]["ce_head"]["accuracy"]
    write_json(cell.path(options.out), found)
    shutil.rmtree(folder)
    return ", ".join(f"{accuracy:.1f}%" for accuracy in found.values())


def run_study(options: argparse.Namespace) -> None:
    """Draw the images, and run what is missing."""
    for split, number in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        draw_images(options.data, options.out / "images", split=split, number=SMOKE_IMAGES if options.smoke else number)
    run_missing(list_cells(quick=options.quick, smoke=options.smoke), partial(run_cell, options=options), options)


def write_page(options: argparse.Namespace) -> Path:
    """Write both tables; what has no finished run is left out."""
    runs = page.read_runs(options.out / "cells")
    if not runs:
        raise SystemExit(f"no finished cell in {options.out}; run the study without --report-only")
    names = {slug(arm.name): arm.name for arm in ARMS}
    about = ABOUT.format(images=TEST_IMAGES, side=SIDE, steps=STEPS, batch=BATCH, rate=RATE)
    parts = [f"```\n{COMMAND}\n```", about]
    parts.append(markdown_table(["head", "seeds", *SHOTS], page.arm_rows(runs, names, SHOTS).values()))
    pairs = [(head, other) for number, head in enumerate(HEADS) for other in HEADS[number + 1 :]]
    lines = []
    for features in FEATURES:
        for head, other in pairs:
            one, two = (runs.get(slug(Arm(features, what).name), {}) for what in (head, other))
            if set(one) & set(two):
                lines.append([f"{head} - {other}, {features}", *(page.compare_metric(one, two, key) for key in SHOTS)])
    parts += [markdown_table(["difference, features", *SHOTS], lines)] if lines else []
    return page.write_measured(options.report / "frozen_heads.md", "What do a few labels give on frozen features?", parts)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the photographs and the weights."""
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test parquet files")
    parser.add_argument("--weights", type=Path, help="weights of an EfficientNet-Lite0, as timm loads them")


if __name__ == "__main__":
    main(__doc__, name="frozen_heads", quick="one seed", run=run_study, write_page=write_page, add_options=add_options)

"""Is a small synthetic set a better start than real images? KRR-ST (arXiv:2310.06511) on CIFAR-10's photographs.

    python -m scripts.studies.small_sets --data cifar10 --target parts/tower_timm.safetensors --quick      # one seed
    python -m scripts.studies.small_sets --data cifar10 --target parts/tower_timm.safetensors              # all seeds; again to resume
    python -m scripts.studies.small_sets --data cifar10 --report-only

--data is a folder with train and test parquet files (columns image, label), --target the weights of an EfficientNet-Lite0 as
``scripts/real/parts.py`` makes them. A seed draws real images, which `mmalign classifier distill-images` learns from; `classifier train
--form feature-kd` pre-trains a small network on the set; `classifier train --form ce-only` tunes it on few labels.
"""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path

from datasets import Dataset

from mmalign.files import read_json
from scripts.studies.small_sets_grid import LABELS, NUM_IMAGES, Cell, Steps, count_steps, list_cells
from scripts.studies.small_sets_page import write_page
from scripts.studies.study import main, run_missing, run_mmalign, write_dataset, write_json

PAGE = Path(__file__).resolve().parents[2] / "docs"
NETWORK = {"channels": [16, 32, 64, 256], "stem_width": 8}
REAL_IMAGES, SMOKE_IMAGES = 10_000, 120
BATCH, TUNING_BATCH = 64, 32


def draw_images(data: Path, out: Path, *, split: str, number: int) -> None:
    """Draw images of a split, the same for all arms and seeds, where the file is missing."""
    path = out / f"{split}.parquet"
    if not path.is_file():
        images = Dataset.from_parquet(str(data / path.name))
        write_dataset(path, images.shuffle(seed=0).select(range(number)))


def make_set(cell: Cell, options: argparse.Namespace, steps: Steps) -> Path:
    """Make the set that a cell pre-trains on, if it is not there: learned, or real images with the target's features."""
    folder = options.out / "sets" / f"{cell.arm.images}-{cell.seed}"
    number = NUM_IMAGES if cell.arm.images != "all" else SMOKE_IMAGES if options.smoke else REAL_IMAGES
    overlay = {"pretrained_cfg_overlay": {"file": str(options.target)}}
    words = ["classifier", "distill-images", "--data", options.out / "images", "--cache", options.out / "cache", "--out", folder]
    words += ["--target", "tf_efficientnet_lite0", "--target-options", json.dumps(overlay), "--target-size", 32 if options.smoke else 96]
    words += ["--backbone", "resnet10t", "--backbone-options", json.dumps(NETWORK), "--image-size", 32, "--seed", cell.seed]
    words += ["--num-images", number, "--batch-size", 128, "--learning-rate", "1e-2", "--online-steps", steps.online]
    words += ["--steps", steps.distill if cell.arm.images == "distilled" else 0]
    run_mmalign(words, options.out / "logs" / f"{folder.name}.txt")
    return folder


def training_words(data: Path, options: argparse.Namespace, *, steps: int, batch: int, rate: str, seed: int, out: Path) -> list[object]:
    """What pre-training and tuning share."""
    words: list[object] = ["classifier", "train", "--data", data, "--cache", options.out / "cache", "--backbone", "resnet10t", "--out", out]
    words += ["--image-size", 32, "--max-steps", steps, "--batch-size", batch, "--learning-rate", rate, "--warmup-ratio", 0.05]
    return [*words, "--seed", seed, "--logging-steps", 50, "--trainer", "{disable_tqdm: true, save_strategy: 'no'}"]


def pretrain(cell: Cell, options: argparse.Namespace, steps: Steps, log: Path) -> Path:
    """Train a network from random weights to predict the set's features; return the weights of its backbone."""
    images, folder = make_set(cell, options, steps), options.out / "runs" / cell.slug / "pretrained"
    words = training_words(images, options, steps=steps.pretrain, batch=BATCH, rate="2e-3", seed=cell.seed, out=folder)
    words += ["--no-pretrained", "--backbone-options", json.dumps(NETWORK), "--augmentation", cell.arm.views]
    words += ["--form", "feature-kd", "--feature-loss", "mse", "--label-weight", 0, "--label-share", 1, "--unlabeled-per-label", 0]
    run_mmalign([*words, "--teacher", images / "targets.safetensors", "--teacher-kind", "logits"], log)
    return folder / "backbone.safetensors"


def tune(cell: Cell, options: argparse.Namespace, steps: Steps, share: float, weights: Path | None, log: Path) -> float:
    """Train all of the network, from the weights or from random ones, on a share of the labels; return its test accuracy in percent."""
    out = options.out / "runs" / cell.slug / f"tuned-{share}"
    words = training_words(options.out / "images", options, steps=steps.tune, batch=TUNING_BATCH, rate="2e-3", seed=cell.seed, out=out)
    words += ["--backbone-options", json.dumps(NETWORK), *(["--no-pretrained"] if weights is None else ["--backbone-weights", weights])]
    words += ["--form", "ce-only", "--augmentation", "pad-crop", "--label-share", share, "--split-seed", cell.seed]
    run_mmalign([*words, "--test-data", options.data], log)
    return 100 * read_json(out / "classifier.json")["test"]["ce_head"]["accuracy"]


def run_cell(cell: Cell, options: argparse.Namespace) -> str:
    """Pre-train where the arm does, tune on each share of the labels, and keep the accuracies; the weights are deleted."""
    steps, folder = count_steps(smoke=options.smoke), options.out / "runs" / cell.slug
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = options.out / "logs" / f"{cell.slug}.txt"
    weights = pretrain(cell, options, steps, log) if cell.arm.images else None
    found = {name: tune(cell, options, steps, share, weights, log) for name, share in LABELS.items()}
    write_json(cell.path(options.out), found)
    shutil.rmtree(folder)
    return ", ".join(f"{name} {accuracy:.1f}%" for name, accuracy in found.items())


def run_study(options: argparse.Namespace) -> None:
    """Draw the images, and run what is missing."""
    draw_images(options.data, options.out / "images", split="train", number=SMOKE_IMAGES if options.smoke else REAL_IMAGES)
    cells = list_cells(quick=options.quick, smoke=options.smoke)
    run_missing(cells, partial(run_cell, options=options), options, together=lambda one: one.seed)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the photographs and the target; the page goes to the docs if not told otherwise."""
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test parquet files")
    parser.add_argument("--target", type=Path, help="weights of an EfficientNet-Lite0, as timm loads them")
    parser.set_defaults(report=PAGE)


if __name__ == "__main__":
    main(__doc__, name="small_sets", quick="one seed", run=run_study, write_page=write_page, add_options=add_options)

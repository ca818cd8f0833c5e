"""``mmalign classifier distill-images``: a small synthetic set that a network is pre-trained on in place of all images."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmalign.classifier.feature_target import cache_target_features, load_target, name_target_features
from mmalign.classifier.image_cache import CachedImages, cache_images
from mmalign.classifier.image_distillation import ImageDistillation, RealImages
from mmalign.classifier.labeled_images import LabeledImages, load_labeled_images
from mmalign.classifier.synthetic_images import SHEET_FILE, save_set, save_sheet
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.files import whole, write_whole
from mmalign.models.load import best_device
from mmalign.options.distill_images import DistillImagesOptions
from mmalign.runs.classifier_teacher import hash_source
from mmalign.runs.run_record import build_record, claim_folder, claiming, is_first_process

METHOD = "distill-images"
REPORT_FILE, LOG_FILE, CHECKPOINT_FILE = "distilled.json", "distill_log.json", "checkpoint.pt"


def run(options: DistillImagesOptions) -> None:
    """Learn the set, or resume; save images, features, a sheet and a report. One process does it, whatever the launcher starts.

    Raises:
        ValueError: If the data or the target can't be used, or ``out`` holds another run.
    """
    if is_first_process():
        with claiming(options.out):
            distill(options)


def distill(options: DistillImagesOptions) -> None:
    """The same, in the one process."""
    data = load_labeled_images(options.data, split="train", name=options.set, need_labels=False)
    for note in data.notes:
        print(f"warning: {note}")
    weights = hash_target(options)
    memory = options.cache_folder if options.cache_folder.is_dir() else None
    hashes = {"train": data.fingerprint(memory), "target": weights}
    claim_folder(options.out, build_record(options, method=METHOD, data=hashes))
    if (options.out / REPORT_FILE).is_file():
        print(f"{options.out} is finished")
        return
    rejects = Rejects(options.out / "rejects.jsonl", max_share=options.max_reject_share)
    images = cache_images(data, options.cache_folder, side=options.image_size, rejects=rejects)
    device = best_device()
    features = find_features(options, data, images, weights=weights, device=device)
    distillation = ImageDistillation(options, RealImages(images.pixels, features), device=device)
    train(options, distillation)
    save(options, distillation, images)


def hash_target(options: DistillImagesOptions) -> str:
    """Hash the target's files, as far as it has any here."""
    named = options.target_options.get("pretrained_cfg_overlay")
    file = named.get("file") if isinstance(named, dict) else None
    return hash_source(options.target if file is None else str(file))


def find_features(
    options: DistillImagesOptions, data: LabeledImages, images: CachedImages, *, weights: str, device: torch.device
) -> torch.Tensor:
    """Run the target over all images, or find its features on disk."""
    path = options.cache_folder / name_target_features(options, images, weights=weights)
    return cache_target_features(load_target(options, device=device), data, images, path, device=device)


def train(options: DistillImagesOptions, distillation: ImageDistillation) -> None:
    """Make the steps that are left, with a checkpoint after every few.

    Raises:
        ValueError: If the checkpoint can't be read.
    """
    path = options.out / CHECKPOINT_FILE
    if path.is_file():
        distillation.load(read_checkpoint(path))
    done = len(distillation.losses)
    for number in tqdm(range(done + 1, options.steps + 1), desc="distilling", unit="step", initial=done, total=options.steps, leave=False):
        distillation.step()
        if number % options.save_steps == 0:
            with whole(path) as partial:
                torch.save(distillation.state(), partial)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged: {error}; remove it to begin anew") from error


def save(options: DistillImagesOptions, distillation: ImageDistillation, images: CachedImages) -> None:
    """Save the set; the report comes last, and with it the checkpoint goes."""
    out, start, learned = options.out, distillation.start, distillation.images()
    ids, labels, classes = [images.ids[i] for i in start], images.labels[start].tolist(), images.classes
    if len(classes) < 2:
        # A classifier has two classes or more, whatever it learns.
        labels, classes = list(range(len(ids))), tuple(ids)
    source = f"features of {options.target} ({options.target_kind})"
    save_set(out, images=learned, features=distillation.features.detach(), ids=ids, labels=labels, classes=classes, source=source)
    save_sheet(out / SHEET_FILE, np.array(images.pixels[start]), learned)
    log = average(distillation.losses, options.logging_steps)
    write_whole(out / LOG_FILE, json.dumps(log, indent=1))
    report: dict[str, Any] = {"num_images": len(start), "num_real": len(images.ids), "feature_size": distillation.features.shape[1]}
    report |= {"steps": options.steps, "target": source, "classes_of_starts": len(set(labels))}
    report |= {"first_loss": log[0]["loss"], "last_loss": log[-1]["loss"]} if log else {}
    write_whole(out / REPORT_FILE, json.dumps(report, indent=1))
    (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    moved = f"; loss {log[0]['loss']:.4g} at first, {log[-1]['loss']:.4g} at last" if log else ", as they are"
    print(f"saved in {out}: {len(start):,} images for {len(images.ids):,}{moved}")


def average(losses: list[float], every: int) -> list[dict[str, float]]:
    """Average the losses of every few steps; the last line may be of fewer."""
    parts = [losses[i : i + every] for i in range(0, len(losses), every)]
    return [{"step": min((i + 1) * every, len(losses)), "loss": sum(part) / len(part)} for i, part in enumerate(parts)]

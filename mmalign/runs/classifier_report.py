"""What a classifier is worth: both heads, mixed and the teacher side by side; and the mixing, tuned on validation images only."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmalign.classifier.augment import make_views
from mmalign.classifier.class_logits import load_class_logits
from mmalign.classifier.dual_head import DualHead, Mixing, load_dual_head, write_config
from mmalign.classifier.image_cache import CachedImages, cache_images
from mmalign.classifier.labeled_images import LabeledImages, load_labeled_images
from mmalign.classifier.metrics import score_probabilities, search_mixing
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.losses.classifier import mix_probabilities
from mmalign.models.load import best_device
from mmalign.options.classifier import EvaluateClassifierOptions, TuneMixingOptions
from mmalign.runs.run_record import RUN_FILE, read_record
from mmalign.tables import text_table

Scores = dict[str, dict[str, float]]


@torch.no_grad()
def compute_logits(
    model: DualHead, images: CachedImages, index: NDArray[np.int64] | None = None, *, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Run the classifier on the centres of images, on its device: CE and KD logits (N, C) on the CPU, float32."""
    device, preprocessing = next(model.parameters()).device, model.settings.preprocessing
    index = np.arange(len(images.ids)) if index is None else index
    parts = []
    for start in range(0, len(index), batch_size):
        stored = torch.from_numpy(images.pixels[index[start : start + batch_size]]).to(device)
        views = make_views(stored, None, augmentation="none", side=preprocessing.image_size)
        output = model(preprocessing.normalize(views))
        parts.append((output.ce_logits.float().cpu(), output.kd_logits.float().cpu()))
    ce_logits, kd_logits = (torch.cat(logits) for logits in zip(*parts, strict=True))
    return ce_logits, kd_logits


def score_classifier(
    model: DualHead, logits: tuple[Tensor, Tensor], labels: Tensor, *, teacher: Tensor | None = None, mixing: Mixing | None = None
) -> Scores:
    """Score CE head, KD head, their mixture (the model's own if no mixing is given) and the teacher's logits (N, C), if any."""
    ce_logits, kd_logits = logits
    found = {"ce_head": ce_logits.softmax(-1)}
    if model.kd_head is not None:
        mixing = mixing or model.settings.mixing
        mixed = mix_probabilities(
            ce_logits, kd_logits, ce_head_weight=mixing.ce_head_weight, kd_head_temperature=mixing.kd_head_temperature
        )
        found |= {"kd_head": kd_logits.softmax(-1), "mixed": mixed}
    if teacher is not None:
        found["teacher"] = teacher.softmax(-1)
    return {name: score_probabilities(probabilities, labels) for name, probabilities in found.items()}


def tune_mixing(model: DualHead, logits: tuple[Tensor, Tensor], labels: Tensor, *, source: str) -> list[list[float]]:
    """Search the grid and put the best pair into the model's settings; return the grid's accuracies, (weights, temperatures)."""
    found = search_mixing(*logits, labels)
    model.set_mixing(
        Mixing(
            ce_head_weight=found.ce_head_weight,
            kd_head_temperature=found.kd_head_temperature,
            source=f"tuned on {len(labels)} images of {source}: accuracy {found.accuracy:.4f}",
        )
    )
    return found.grid.tolist()


def format_scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Lay the scores out as a table."""
    rows = [(name, f"{100 * s['accuracy']:.2f}%", f"{100 * s['ece']:.2f}%") for name, s in scores.items()]
    return text_table([("", "accuracy", "calibration error"), *rows])


def read_for(model: DualHead, data: LabeledImages, cache: Path, *, rejects: Path) -> CachedImages:
    """Decode images for a model, their labels by the model's numbers.

    Raises:
        ValueError: If there are images of a class that the model doesn't have.
    """
    data = data.with_classes(model.settings.classes, what="the data")
    for note in data.notes:
        print(f"warning: {note}")
    side = model.settings.preprocessing.resize_size
    return cache_images(data, cache, side=side, rejects=Rejects(rejects, max_share=0.05))


def evaluate_folder(options: EvaluateClassifierOptions) -> None:
    """Evaluate a checkpoint."""
    model = load_dual_head(options.model).to(best_device())
    data = load_labeled_images(options.data, split=options.split, name=options.set)
    images = read_for(model, data, options.cache, rejects=options.cache / "rejects.jsonl")
    teacher = None
    if options.teacher_logits is not None:
        teacher = load_class_logits(options.teacher_logits, ids=images.ids, classes=images.classes, digests=images.digests).logits[:, 0]
    scores = score_classifier(
        model, compute_logits(model, images, batch_size=options.batch_size), torch.from_numpy(images.labels), teacher=teacher
    )
    mixing = model.settings.mixing
    print(f"{len(images.ids)} images; mixing {mixing.ce_head_weight:g}, {mixing.kd_head_temperature:g} ({mixing.source})")
    print(format_scores(scores))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"num_images": len(images.ids), "split": options.split, "scores": scores}, indent=1))


def tune_folder(options: TuneMixingOptions) -> None:
    """Tune a checkpoint's mixing and write it there.

    Raises:
        ValueError: If the images are test images, by name or because the run named them so; or there is one head.
    """
    if options.split == "test":
        raise UserError("the mixing may not be tuned on test images: the test accuracy would no longer be one; use --split validation")
    model = load_dual_head(options.model).to(best_device())
    if model.kd_head is None:
        raise UserError(f"{options.model} has a single head: there is nothing to mix")
    images = read_for(
        model,
        load_labeled_images(options.data, split=options.split, name=options.set),
        options.cache,
        rejects=options.cache / "rejects.jsonl",
    )
    if (options.model / RUN_FILE).is_file() and images.fingerprint == read_record(options.model).get("test_images"):
        raise UserError(f"{options.data} are the test images of {options.model}; the mixing may be tuned on validation images only")
    tune_mixing(
        model,
        compute_logits(model, images, batch_size=options.batch_size),
        torch.from_numpy(images.labels),
        source=f"{options.data.name} ({options.split})",
    )
    write_config(options.model, model.settings)
    mixing = model.settings.mixing
    print(f"ce_head_weight {mixing.ce_head_weight:g}, kd_head_temperature {mixing.kd_head_temperature:g}, {mixing.source}")

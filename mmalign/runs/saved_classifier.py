"""``mmalign classifier evaluate | tune | export``: what is done with a trained classifier.

Shape legend: N = images, C = classes.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmalign.classifier.class_logits import load_class_logits
from mmalign.classifier.class_names import read_class_names
from mmalign.classifier.detection import score_detection
from mmalign.classifier.dual_head import DualHead, load_dual_head, write_config
from mmalign.classifier.export import export_classifier
from mmalign.classifier.image_cache import CachedImages, cache_images
from mmalign.classifier.labeled_images import LabeledImages, load_labeled_images
from mmalign.classifier.metrics import (
    Scores,
    compute_logits,
    find_probabilities,
    format_scores,
    keep_classes,
    score_classifier,
    tune_mixing,
)
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.files import RUN_FILE, read_json_object, write_whole
from mmalign.models.load import best_device
from mmalign.options.classifier import EvaluateClassifierOptions, ExportClassifierOptions, ScoredImages, TuneMixingOptions
from mmalign.runs.classifier import REPORT_FILE
from mmalign.runs.classifier_card import write_classifier_card
from mmalign.runs.run_record import read_record
from mmalign.tables import text_table


def run_evaluate(options: EvaluateClassifierOptions) -> None:
    """Print accuracy and calibration of each head, mixed, and the teacher; the same of shifted sets, and how foreign images are told."""
    model = load_dual_head(options.model).to(best_device())
    data = load_scored(options)
    if options.class_map is not None:
        data = data.rename_classes(read_class_names(options.class_map, data.classes), what=str(options.class_map))
    # What can't be used is told before the first image is looked at.
    shifted = {path: load_shifted(options, path, model) for path in options.shifted_data}
    foreign = {path: load_foreign(options, path, model) for path in options.foreign_data}
    images = decode_scored(options, data, model)
    teacher = None
    if options.teacher_logits is not None:
        teacher = load_class_logits(options.teacher_logits, ids=images.ids, classes=images.classes, digests=images.digests).logits[:, 0]
    logits = compute_logits(model, images, batch_size=options.batch_size)
    listed = None if options.class_map is None else [n for n, name in enumerate(model.settings.classes) if name in data.classes]
    scores = score_among(model, logits, images, listed, teacher=teacher)
    mixing = model.settings.mixing
    how = f"; mixing {mixing.ce_head_weight:g}, {mixing.kd_head_temperature:g} ({mixing.source})" if model.kd_head is not None else ""
    print(f"{len(images.ids)} images{how}")
    print(format_scores(scores))
    result: dict[str, Any] = {"num_images": len(images.ids), "split": options.split, "scores": scores}
    if shifted:
        result["shifted"] = {str(path): score_shifted(options, path, other, model) for path, other in shifted.items()}
    if foreign:
        result["foreign"] = {str(path): score_foreign(options, path, other, model, logits) for path, other in foreign.items()}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, json.dumps(result, indent=1))


def score_among(
    model: DualHead, logits: tuple[Tensor, Tensor], images: CachedImages, listed: list[int] | None, *, teacher: Tensor | None = None
) -> Scores:
    """Score both heads' logits, among the listed classes alone where they are not all."""
    if listed is not None:
        logits = keep_classes(logits[0], listed), keep_classes(logits[1], listed)
        teacher = None if teacher is None else keep_classes(teacher, listed)
        print(f"accuracy among {len(listed)} of the classifier's {len(model.settings.classes)} classes")
    return score_classifier(model, logits, torch.from_numpy(images.labels), teacher=teacher)


def load_shifted(options: EvaluateClassifierOptions, path: Path, model: DualHead) -> LabeledImages:
    """Read another set of the classifier's classes."""
    return load_labeled_images(path, split=options.split, column=options.label_column).with_classes(model.settings.classes, what=str(path))


def load_foreign(options: EvaluateClassifierOptions, path: Path, model: DualHead) -> LabeledImages:
    """Read images of none of the classes, whose own classes need not be known.

    Raises:
        ValueError: If some are of a class that the classifier knows.
    """
    data = load_labeled_images(path, split=options.split, column=options.label_column, need_labels=False)
    if shared := sorted(set(data.classes) & set(model.settings.classes)):
        raise UserError(f"{path} has images of {', '.join(shared)}, which the classifier knows; expected images of other classes")
    return data


def score_shifted(options: EvaluateClassifierOptions, path: Path, data: LabeledImages, model: DualHead) -> dict[str, Any]:
    """Score another set of the classifier's classes, among those that it has."""
    images = decode_for(options, data, model)
    logits = compute_logits(model, images, batch_size=options.batch_size)
    listed = np.unique(images.labels).tolist()
    print(f"\n{path}: {len(images.ids)} images")
    scores = score_among(model, logits, images, listed if len(listed) < len(model.settings.classes) else None)
    print(format_scores(scores))
    return {"num_images": len(images.ids), "num_classes": len(listed), "scores": scores}


def score_foreign(
    options: EvaluateClassifierOptions, path: Path, data: LabeledImages, model: DualHead, logits: tuple[Tensor, Tensor]
) -> dict[str, dict[str, float] | int]:
    """Score how images of none of the classes are told from those of ``logits``, by each head's largest probability."""
    images = decode_for(options, data, model)
    outside = find_probabilities(model, compute_logits(model, images, batch_size=options.batch_size))
    inside = find_probabilities(model, logits)
    found = {head: score_detection(inside[head].amax(-1), outside[head].amax(-1)) for head in inside}
    print(f"\n{path}: {len(images.ids)} foreign images, by the largest probability")
    print(text_table([("", "AUROC", "FPR at 95%"), *((name, f"{s['auroc']:.2%}", f"{s['fpr_at_95']:.2%}") for name, s in found.items())]))
    return {"num_images": len(images.ids), **found}


def run_tune(options: TuneMixingOptions) -> None:
    """Tune a classifier's mixing on validation images, and write it into its folder.

    Raises:
        ValueError: If the images are test images, by name or because the run named them so; or there is one head.
    """
    if options.split == "test":
        raise UserError("the mixing may not be tuned on test images: the test accuracy would no longer be one; use --split validation")
    model = load_dual_head(options.model).to(best_device())
    if model.kd_head is None:
        raise UserError(f"{options.model} has a single head: there is nothing to mix")
    images = decode_scored(options, load_scored(options), model)
    if (options.model / RUN_FILE).is_file() and images.fingerprint == read_record(options.model).get("test_images"):
        raise UserError(f"{options.data} are the test images of {options.model}; the mixing may be tuned on validation images only")
    logits = compute_logits(model, images, batch_size=options.batch_size)
    grid = tune_mixing(model, logits, torch.from_numpy(images.labels), source=f"{options.data.name} ({options.split})")
    write_config(options.model, model.settings)
    retell(options.model, model, grid)
    mixing = model.settings.mixing
    print(f"ce_head_weight {mixing.ce_head_weight:g}, kd_head_temperature {mixing.kd_head_temperature:g}, {mixing.source}")


def retell(folder: Path, model: DualHead, grid: list[list[float]]) -> None:
    """Take the scores of the former mixing out of a run's report and card, and say how the heads are mixed now."""
    if not ((folder / RUN_FILE).is_file() and (folder / REPORT_FILE).is_file()):
        return
    report = read_json_object(folder / REPORT_FILE)
    for part in ("validation", "test"):
        report.get(part, {}).pop("mixed", None)
    report |= {"mixing": dataclasses.asdict(model.settings.mixing), "mixing_grid": grid}
    write_whole(folder / REPORT_FILE, json.dumps(report, indent=1))
    write_classifier_card(folder, model, read_record(folder), report)


def load_scored(options: ScoredImages) -> LabeledImages:
    """Read the images and their own classes; nothing is decoded yet."""
    return load_labeled_images(options.data, split=options.split, name=options.set, column=options.label_column)


def decode_scored(options: ScoredImages, data: LabeledImages, model: DualHead) -> CachedImages:
    """Decode images for a classifier, their labels numbered as its classes are.

    Raises:
        ValueError: If there are images of a class that it doesn't have.
    """
    return decode_for(options, data.with_classes(model.settings.classes, what="the data"), model)


def decode_for(options: ScoredImages, data: LabeledImages, model: DualHead) -> CachedImages:
    """Decode images for a classifier, their labels as they are."""
    for note in data.notes:
        print(f"warning: {note}")
    rejects = Rejects(options.cache / "rejects.jsonl", max_share=0.05)
    return cache_images(data, options.cache, side=model.settings.preprocessing.resize_size, rejects=rejects)


def run_export(options: ExportClassifierOptions) -> None:
    """Write a classifier as one plain module."""
    difference = export_classifier(load_dual_head(options.model), options.out, file_format=options.format)
    print(f"saved in {options.out}; largest difference from the checkpoint's probabilities: {difference:.1e}")

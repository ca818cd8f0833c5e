"""``mmalign classifier fit-head``: a classifier whose head is computed and not trained."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from mmalign.classifier.closed_form import ALPHAS, PENALTIES, Held, Support, Tried, choose, fit_hilbert, fit_ridge, join_support
from mmalign.classifier.dual_head import DualHead, load_dual_head
from mmalign.classifier.kernel_head import KernelHead
from mmalign.classifier.metrics import compute_features, compute_logits, format_scores, score_classifier
from mmalign.classifier.student import build_classifier
from mmalign.classifier.training_images import SPLIT_FILE, RunImages, check_choice, check_images, check_names, decode_images, load_sources
from mmalign.errors import UserError
from mmalign.files import write_whole
from mmalign.models.load import best_device
from mmalign.models.parameters import count_parameters
from mmalign.options.classifier import BackboneOptions
from mmalign.options.fit_head import FitHeadOptions
from mmalign.runs.classifier import REPORT_FILE, describe_classifier_run
from mmalign.runs.classifier_card import write_classifier_card
from mmalign.runs.classifier_teacher import RunTeacher, cache_teacher, hash_source, load_teacher
from mmalign.runs.run_record import claim_folder, claiming, is_first_process, write_record

METHOD = "fit-head"


def run(options: FitHeadOptions) -> None:
    """Fit the head, and save the classifier with its report and card. One process does it, whatever the launcher starts.

    Raises:
        ValueError: If options don't fit together, the data can't be used, or ``out`` holds another run.
    """
    if not is_first_process():
        return
    check_choice(options)
    set_seed(options.seed)
    with claiming(options.out, SPLIT_FILE):
        fit_and_save(*find_start(options))


def fit_and_save(start: DualHead | None, options: FitHeadOptions) -> None:
    """The same on the backbone of ``start``, or on the one that the options name."""
    sources = load_sources(options)
    for note in check_names(options, sources):
        print(f"warning: {note}")
    record = describe_classifier_run(options, sources["train"], method=METHOD)
    if options.classifier is not None:
        record["data"]["classifier"] = hash_source(str(options.classifier))
    claim_folder(options.out, record)
    images, device = decode_images(options, sources), best_device()
    for note in check_images(images):
        print(f"warning: {note}")
    model = (build_classifier(options, images.train.classes, **_ONE_HEAD) if start is None else reuse_backbone(start, images)).eval()
    teacher = prepare_teacher(options, images, device=device)
    model.to(device)
    support, held = gather(options, model, images, teacher)
    head, tried = fit(options, support, held)
    model.replace_head(head)
    report = score(options, model.to(device), images, teacher)
    report |= {"num_support": len(support.features), "tried": [one._asdict() for one in tried]}
    report |= {"chosen": choose(tried)._asdict() | {"on": held.source}} if tried and held is not None else {}
    save(options, model, images, report, record)


def find_start(options: FitHeadOptions) -> tuple[DualHead | None, FitHeadOptions]:
    """Load the classifier whose backbone is taken, if there is one, and take its sizes of images.

    Raises:
        ValueError: If another backbone, or another size, is given too.
    """
    if options.classifier is None:
        return None, options
    for name in ("library", "backbone", "backbone_weights", "image_size", "resize_size"):
        value = getattr(options, name)
        if value != BackboneOptions.__dataclass_fields__[name].default:
            raise UserError(f"{name} is {value}, and --classifier {options.classifier} has its own; leave one of the two out")
    start = load_dual_head(options.classifier)
    sizes = start.settings.preprocessing
    return start, dataclasses.replace(options, image_size=sizes.image_size, resize_size=sizes.resize_size)


_ONE_HEAD: dict[str, Any] = {"heads": "single", "ce_head": "linear", "kd_head": "linear"}


def reuse_backbone(start: DualHead, images: RunImages) -> DualHead:
    """The backbone of a classifier below a head of the data's classes."""
    model = DualHead(dataclasses.replace(start.settings, classes=images.train.classes, teacher_feature_size=None, kernel=None, **_ONE_HEAD))
    model.backbone.load_state_dict(start.backbone.state_dict())
    return model


def prepare_teacher(options: FitHeadOptions, images: RunImages, *, device: torch.device) -> RunTeacher:
    """Load the teacher, if the labels are its own, and have it look at the centre of every training image."""
    if options.labels == "true":
        return RunTeacher()
    if not len(images.split.unlabeled):
        raise UserError(
            f"labels {options.labels}: all {len(images.split.labeled)} images are labelled, and the teacher has none to look at"
        )
    teacher = load_teacher(options, images.train, images.split, device=device)
    cached = cache_teacher(options, teacher, images.train, images.split, device=device)
    if not cached.taught[images.split.unlabeled].any():
        raise UserError(f"{options.teacher}: no unlabelled image has logits that are finite, and labels {options.labels} learns of them")
    return RunTeacher(teacher, cached)


def gather(options: FitHeadOptions, model: DualHead, images: RunImages, teacher: RunTeacher) -> tuple[Support, Held | None]:
    """Compute the features of the images that make the head, and of those that choose its number.

    Validation images choose; where there are none, the labelled images do, each left out of its own prediction.
    """
    train, split = images.train, images.split
    features, labels = compute_features(model, train, split.labeled), torch.from_numpy(train.labels[split.labeled])
    taught = None
    if teacher.cached is not None:
        index = split.unlabeled[teacher.cached.taught[split.unlabeled].numpy()]
        taught = compute_features(model, train, index), teacher.cached.logits[index, 0].softmax(-1)
    labeled = None if options.labels == "teacher" else (features, labels)
    support = join_support(labeled, taught, num_classes=len(train.classes), label_weight=options.label_weight)
    if "validation" in images.scored:
        found, index = images.scored["validation"]
        source = f"{len(index)} validation images"
        return support, Held(compute_features(model, found, index), torch.from_numpy(found.labels[index]), inside=False, source=source)
    if labeled is None:
        return support, Held(features, labels, inside=False, source=f"{len(labels)} labelled images")
    if taught is None and labels.bincount().max() < 2:
        return support, None
    return support, Held(features, labels, inside=True, source=f"{len(labels)} labelled images, each left out")


def fit(options: FitHeadOptions, support: Support, held: Held | None) -> tuple[nn.Linear | KernelHead, list[Tried]]:
    """Fit the head that the options name.

    Raises:
        ValueError: If something is to be chosen, and there are no images to choose on.
    """
    if held is None and (options.kernel == "ridge" or options.alpha is None):
        raise UserError(
            "no class has two labelled images, so that leaving one out says nothing; give --validation-data or --validation-share, "
            "more --shots, or --kernel hilbert with --alpha"
        )
    if options.kernel == "hilbert":
        return fit_hilbert(support, held, ALPHAS if options.alpha is None else (options.alpha,))
    assert held is not None
    return fit_ridge(support, held, PENALTIES if options.penalty is None else (options.penalty,))


def score(options: FitHeadOptions, model: DualHead, images: RunImages, teacher: RunTeacher) -> dict[str, Any]:
    """Score the head and the teacher on validation and test images."""
    split, device = images.split, next(model.parameters()).device
    report: dict[str, Any] = {"form": options.kernel, "labels": options.labels}
    report |= {"num_labeled": len(split.labeled), "num_unlabeled": len(split.unlabeled)}
    for name, (found, index) in images.scored.items():
        beside = teacher.score_images(found, index, trained=found is images.train, device=device)
        logits, labels = compute_logits(model, found, index), torch.from_numpy(found.labels[index])
        report[name] = score_classifier(model, logits, labels, teacher=beside)
        report[f"num_{name}"] = len(labels)
        print(f"{name}, {len(labels):,} images\n{format_scores(report[name])}")
    return report


def save(options: FitHeadOptions, model: DualHead, images: RunImages, report: dict[str, Any], record: dict[str, Any]) -> None:
    """Save the classifier, its report, the record and the card."""
    out: Path = options.out
    model.save_pretrained(out)
    write_whole(out / REPORT_FILE, json.dumps(report, indent=1))
    record |= {f"{name}_images": found.fingerprint for name, (found, _) in images.scored.items()}
    record |= {"num_rows": len(images.train.ids), "parameters": dataclasses.asdict(count_parameters(model))}
    write_record(out, record)
    write_classifier_card(out, model, record, report)
    chosen = report.get("chosen")
    name = "alpha" if options.kernel == "hilbert" else "penalty"
    how = f", {name} {chosen['value']:g}: {chosen['accuracy']:.1%} right on {chosen['on']}" if chosen else f", {name} {options.alpha:g}"
    print(f"saved in {out}: {options.kernel} head of {report['num_support']:,} images{how}")

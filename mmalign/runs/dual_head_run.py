"""What ``mmalign classifier train`` does: images, split, student, teacher, training, mixing, report."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from timm.data import resolve_model_data_config
from transformers import set_seed

from mmalign.classifier.class_logits import ClassLogits
from mmalign.classifier.class_names import check_words
from mmalign.classifier.dual_head import (
    PUBLISHED_MIXING,
    DualHead,
    DualHeadConfig,
    Mixing,
    Preprocessing,
    init_heads_from_text,
    load_pretrained_backbone,
    read_tower_config,
)
from mmalign.classifier.image_cache import CachedImages, cache_images
from mmalign.classifier.labeled_images import LabeledImages, load_labeled_images
from mmalign.classifier.method import FORMS_WITH_TEACHER, DualHeadMethod, DualHeadObjective, StreamRows
from mmalign.classifier.splits import LabelSplit, draw_split, load_split, save_split
from mmalign.classifier.teachers import ImageTeacher, embed_classes
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.files import hash_file, write_whole
from mmalign.models.load import load_clip
from mmalign.models.parameters import count_parameters
from mmalign.options.classifier import TrainClassifierOptions
from mmalign.runs.classifier_card import write_classifier_card
from mmalign.runs.classifier_report import compute_logits, format_scores, score_classifier, tune_mixing
from mmalign.runs.dual_head_teacher import (
    TEXT_TEACHERS,
    cache_teacher,
    choose_prompts,
    choose_words,
    find_feature_width,
    hash_teacher,
    load_teacher,
    score_beside,
)
from mmalign.runs.run_record import build_record, claim_folder, is_first_process, write_record
from mmalign.training.arguments import build_training_arguments, check_trainer
from mmalign.training.checkpoints import ManifestCallback
from mmalign.training.ema import EmaCallback
from mmalign.training.optimizers import build_optimizer
from mmalign.training.running import choose_checkpoint, train_to_end
from mmalign.training.trainer import MethodTrainer

SPLIT_FILE, REPORT_FILE = "split.json", "classifier.json"
# Decoded images, and which of them count.
Part = tuple[CachedImages, NDArray[np.int64]]


def train_classifier(options: TrainClassifierOptions) -> None:
    """Train, or go on training; tune the mixing on validation images; save with a report.

    Raises:
        ValueError: If options don't fit together, the data can't be used, or ``out`` holds another run.
    """
    _check(options)
    set_seed(options.seed)
    cache = options.cache or options.out / "cache"
    data = load_labeled_images(options.data, split="train", name=options.set)
    # All that is read at the end is looked at before the folder is taken and the first step is made.
    others = load_other_splits(options, data.classes)
    check_names(options, data, others)
    # One process decodes and scores, the others find it done.
    processes = PartialState(cpu=bool(options.trainer.get("use_cpu")))
    device = processes.device
    with processes.main_process_first():
        # A cache inside OUT is begun once OUT is taken.
        hashes = {"train": data.fingerprint(cache if cache.is_dir() else None)}
    hashes |= {str(path): hash_file(path) for path in (options.split_file, options.class_names) if path is not None}
    if options.teacher_kind in ("logits", "classifier") and options.teacher is not None:
        hashes["teacher"] = hash_teacher(options)
    record = build_record(options, method="dual-head", data=hashes)
    claim_folder(options.out, record)
    side = options.resize_size or _default_side(options)
    with processes.main_process_first():
        images = _decode(options, data, "rejects.jsonl", cache, side)
        split = make_split(options, images)
        parts = decode_parts(options, others, images, split, cache, side)
    teacher = None if options.form not in FORMS_WITH_TEACHER else load_teacher(options, images, split, device=device)
    cached = None
    if options.form in FORMS_WITH_TEACHER and options.teacher_mode == "cached":
        with processes.main_process_first():
            cached = cache_teacher(options, teacher, images, split, cache, device=device)
    width = None
    if options.form == "feature-kd":
        width = find_feature_width(cached, teacher, device)
    model = build_student(options, images, side=side, teacher_feature_size=width)
    method = DualHeadMethod(
        images,
        _objective(options),
        preprocessing=model.settings.preprocessing,
        cached=cached,
        teacher=teacher if options.teacher_mode == "live" else None,
        fixed_views=options.teacher_views if cached is not None else 0,
        seed=options.split_seed,
    )
    trainer, ema = make_trainer(options, model, method, split)
    checkpoint = choose_checkpoint(options.out / "checkpoints")
    if options.ema_decay is not None and ema is not None:
        ema.checkpoint = checkpoint
    counts = count_parameters(model)
    print(
        f"training {counts.trainable:,} parameters on {len(split.labeled):,} labelled and {len(split.unlabeled):,} unlabelled images "
        f"of {len(images.classes)} classes"
    )
    train_to_end(trainer, checkpoint)
    if not trainer.is_world_process_zero():
        return
    if ema is not None:
        ema.apply(model)
    finish(options, trainer, images, split, parts, cached, teacher, record)


def load_other_splits(options: TrainClassifierOptions, classes: Sequence[str]) -> dict[str, LabeledImages]:
    """Find validation and test images, as far as they are named, their labels by the training images' numbers.

    Raises:
        ValueError: If they can't be found, or show a class that the training images don't have.
    """
    found = {}
    for name, path in (("validation", options.validation_data), ("test", options.test_data)):
        source = options.data if options.set is not None and path is None else path
        if source is not None:
            data = load_labeled_images(source, split=name, name=options.set if path is None else None)
            found[name] = data.with_classes(classes, what=f"{source} ({name})")
    return found


def check_names(options: TrainClassifierOptions, data: LabeledImages, others: Mapping[str, LabeledImages]) -> None:
    """Look at the class names where a text tower reads them, and say what is odd with names and files.

    Raises:
        ValueError: If names tell a text tower nothing, or the table of them lacks a class.
    """
    notes = [note for part in (data, *others.values()) for note in part.notes]
    words = choose_words(options, data.classes)
    if options.text_init or (options.teacher is not None and options.teacher_kind in TEXT_TEACHERS):
        notes += check_words(words)
    for note in dict.fromkeys(notes) if is_first_process() else ():
        print(f"warning: {note}")


def decode_parts(
    options: TrainClassifierOptions, others: Mapping[str, LabeledImages], images: CachedImages, split: LabelSplit, cache: Path, side: int
) -> dict[str, Part]:
    """Decode validation and test images; validation first, for what is tuned on them counts in the test report.

    Raises:
        ValueError: If too many are broken, or the two are the same.
    """
    parts: dict[str, Part] = {}
    if len(split.validation):
        parts["validation"] = images, split.validation
    for name, data in others.items():
        found = _decode(options, data, f"{name}_rejects.jsonl", cache, side)
        parts[name] = found, np.arange(len(found.ids))
    if "validation" in parts and "test" in parts and parts["validation"][0].fingerprint == parts["test"][0].fingerprint:
        raise UserError("validation and test images are the same; the mixing may be tuned on validation images only")
    return parts


def _decode(options: TrainClassifierOptions, data: LabeledImages, rejects: str, cache: Path, side: int) -> CachedImages:
    return cache_images(data, cache, side=side, rejects=Rejects(options.out / rejects, max_share=options.max_reject_share))


def make_split(options: TrainClassifierOptions, images: CachedImages) -> LabelSplit:
    """Draw the labelled images, or read which they are; kept in OUT/split.json, which wins when the run is gone on with."""
    path = options.out / SPLIT_FILE
    if path.is_file():
        return load_split(path, images.ids)
    if options.split_file is not None:
        split = load_split(options.split_file, images.ids)
    else:
        split = draw_split(
            images.labels,
            num_classes=len(images.classes),
            seed=options.split_seed,
            shots=options.shots,
            share=options.label_share,
            validation_share=options.validation_share,
        )
    save_split(path, split, images.ids, seed=options.split_seed, shots=options.shots, share=options.label_share)
    return split


def build_student(options: TrainClassifierOptions, images: CachedImages, *, side: int, teacher_feature_size: int | None) -> DualHead:
    """Build the student: backbone, heads, preprocessing of its weights."""
    architecture, values = options.backbone, dict(options.backbone_options)
    if options.library == "transformers":
        architecture, values = read_tower_config(options.backbone)
    config = DualHeadConfig(
        library=options.library,
        architecture=architecture,
        backbone=values,
        classes=images.classes,
        preprocessing=Preprocessing(image_size=options.image_size, resize_size=side),
        heads="dual" if options.form == "dual-head" else "single",
        ce_head=options.ce_head,
        kd_head=options.kd_head,
        teacher_feature_size=teacher_feature_size,
        mixing=_default_mixing(options),
    )
    model = DualHead(config)
    model.settings = dataclasses.replace(config, preprocessing=_preprocessing(options, model, side))
    if options.pretrained:
        load_pretrained_backbone(model, options.backbone)
    if options.text_init:
        clip, processor = load_clip(options.backbone, dtype="float32")
        words = choose_words(options, images.classes)
        init_heads_from_text(model, embed_classes(clip, processor, classes=words, prompts=choose_prompts(options)))
    return model


def make_trainer(
    options: TrainClassifierOptions, model: DualHead, method: DualHeadMethod, split: LabelSplit
) -> tuple[MethodTrainer, EmaCallback | None]:
    """Set up the one trainer with both streams, in their own order."""
    plain = dataclasses.replace(options, trainer={"train_sampling_strategy": "sequential", "num_train_epochs": 1, **options.trainer})
    arguments = build_training_arguments(plain, output_dir=options.out / "checkpoints")
    world = max(1, arguments.world_size)
    if world > 1 and options.forward == "separate":
        raise UserError("forward is separate; with several processes only concatenated works: batch norms change between the two passes")
    rows = StreamRows(
        split,
        num_rows=options.max_steps * options.batch_size * options.gradient_accumulation_steps * world,
        unlabeled_per_label=0 if options.form == "ce-only" else options.unlabeled_per_label,
        include_labeled=options.include_labeled,
        seed=options.seed,
    )
    ema = None if options.ema_decay is None else EmaCallback(options.ema_decay, checkpoint=None)
    callbacks = [*([] if ema is None else [ema]), ManifestCallback()]
    trainer = MethodTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        method=method,
        callbacks=callbacks,
        optimizers=(build_optimizer(model, options), None),
    )
    return trainer, ema


def finish(
    options: TrainClassifierOptions,
    trainer: MethodTrainer,
    images: CachedImages,
    split: LabelSplit,
    parts: Mapping[str, Part],
    cached: ClassLogits | None,
    teacher: ImageTeacher | None,
    record: dict[str, Any],
) -> None:
    """Tune the mixing, save the classifier, and report every head on validation and test images."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model).eval()
    report: dict[str, Any] = {"form": options.form, "num_labeled": len(split.labeled), "num_unlabeled": len(split.unlabeled)}
    for name, (found, index) in parts.items():
        logits = compute_logits(model, found, index)
        labels = torch.from_numpy(found.labels[index])
        beside = score_beside(teacher, cached if found is images else None, found, index, trainer.args.device)
        published = None if model.kd_head is None else score_classifier(model, logits, labels, mixing=_default_mixing(options))["mixed"]
        if name == "validation" and model.kd_head is not None:
            report["mixing_grid"] = tune_mixing(model, logits, labels, source=str(options.validation_data or "held-out training images"))
        report[name] = score_classifier(model, logits, labels, teacher=beside)
        report[f"num_{name}"] = len(labels)
        record[f"{name}_images"] = found.fingerprint
        if published is not None:
            report[name]["published"] = published
        print(f"{name}, {len(labels):,} images\n{format_scores(report[name])}")
    report["mixing"] = dataclasses.asdict(model.settings.mixing)
    if cached is not None:
        pool = split.unlabeled
        right = cached.logits[pool, 0].argmax(-1) == torch.from_numpy(images.labels[pool])
        report["teacher_accuracy_unlabeled"] = right.double().mean().item() if len(pool) else None
    model.save_pretrained(options.out)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_whole(options.out / REPORT_FILE, json.dumps(report, indent=1))
    write_whole(options.out / "train_log.json", json.dumps(trainer.state.log_history, indent=1))
    record |= {"steps": trainer.state.global_step, "num_rows": len(images.ids), "parameters": dataclasses.asdict(count_parameters(model))}
    write_record(options.out, record)
    write_classifier_card(options.out, model, record, report)
    print(f"saved in {options.out}" + (f"; last loss {log[-1]['loss']:.3f}" if log else ""))


def _check(options: TrainClassifierOptions) -> None:
    given = [name for name in ("shots", "label_share", "split_file") if getattr(options, name) is not None]
    if len(given) != 1:
        raise UserError(f"{', '.join(given) or 'none'} of --shots, --label-share and --split-file is given; expected one")
    if options.max_steps < 1:
        raise UserError(f"max_steps is {options.max_steps}; both streams are endless, so that steps must be given")
    needs = options.form in FORMS_WITH_TEACHER
    if needs != (options.teacher is not None):
        raise UserError(f"form {options.form} {'needs --teacher' if needs else 'has no use for --teacher; leave it out'}")
    if options.teacher_kind == "logits" and options.teacher_mode == "live":
        raise UserError("a file of logits can't look at live views; use --teacher-mode cached")
    check_trainer(options)
    if options.trainer.get("neftune_noise_alpha") is not None:
        raise UserError("trainer.neftune_noise_alpha is for embeddings of words, and a classifier of images has none; leave it out")
    if options.text_init and options.library != "transformers":
        raise UserError("--text-init needs the text encoder of a CLIP or SigLIP backbone: --library transformers")
    if options.validation_data is not None and options.validation_data == options.test_data and options.validation_data.is_file():
        raise UserError(f"{options.test_data} is named for validation and test; the mixing may be tuned on validation images only")


def _objective(options: TrainClassifierOptions) -> DualHeadObjective:
    return DualHeadObjective(
        form=options.form,
        label_weight=options.label_weight,
        labeled_kd_weight=options.labeled_kd_weight,
        unlabeled_kd_weight=options.unlabeled_kd_weight,
        temperature=options.temperature,
        threshold=options.threshold,
        forward=options.forward,
        augmentation=options.augmentation,
        strong=options.strong_augmentation,
        gradient_cosine_every=options.gradient_cosine_every,
    )


def _default_mixing(options: TrainClassifierOptions) -> Mixing:
    if options.teacher_kind == "few-shot":
        return PUBLISHED_MIXING["few-shot"]
    return PUBLISHED_MIXING["zero-shot" if options.shots is not None else "low-shot"]


def _default_side(options: TrainClassifierOptions) -> int:
    return options.image_size if options.augmentation == "pad-crop" else round(options.image_size * 8 / 7)


def _preprocessing(options: TrainClassifierOptions, model: DualHead, side: int) -> Preprocessing:
    """Mean and deviation that the weights were trained with."""
    if options.library == "timm":
        settings = resolve_model_data_config(model.backbone)
        mean, std = settings["mean"], settings["std"]
    else:
        siglip = model.settings.architecture == "siglip_vision_model"
        mean = (0.5, 0.5, 0.5) if siglip else (0.48145466, 0.4578275, 0.40821073)
        std = (0.5, 0.5, 0.5) if siglip else (0.26862954, 0.26130258, 0.27577711)
    return Preprocessing(image_size=options.image_size, resize_size=side, mean=tuple(mean), std=tuple(std))

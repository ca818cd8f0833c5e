"""``mmalign classifier train``."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from transformers import TrainerCallback, set_seed

from mmalign.classifier.dual_head import DualHead
from mmalign.classifier.labeled_images import LabeledImages
from mmalign.classifier.method import DualHeadMethod
from mmalign.classifier.metrics import compute_logits, format_scores, score_classifier, tune_mixing
from mmalign.classifier.splits import LabelSplit
from mmalign.classifier.streams import StreamRows
from mmalign.classifier.student import build_student, published_mixing
from mmalign.classifier.training_images import SPLIT_FILE, RunImages, check_choice, check_images, check_names, decode_images, load_sources
from mmalign.errors import UserError
from mmalign.files import hash_file, write_whole
from mmalign.models.parameters import count_parameters
from mmalign.options.classifier import (
    ClassifierRunOptions,
    TrainClassifierOptions,
)
from mmalign.runs.classifier_card import write_classifier_card
from mmalign.runs.classifier_teacher import RunTeacher, hash_source, prepare_teacher, source_path
from mmalign.runs.run_record import build_record, claim_folder, claiming, is_first_process, write_record
from mmalign.training.arguments import build_training_arguments, check_trainer
from mmalign.training.checkpoints import ManifestCallback
from mmalign.training.ema import EmaCallback
from mmalign.training.optimizers import build_optimizer
from mmalign.training.resume import choose_checkpoint, train_to_end
from mmalign.training.tracking import build_tracking
from mmalign.training.trainer import MethodTrainer

REPORT_FILE = "classifier.json"


class TrainedClassifier(NamedTuple):
    """A trained classifier, its scores, and the folder that holds both."""

    folder: Path
    model: DualHead
    report: dict[str, Any]


def run_train(options: TrainClassifierOptions) -> TrainedClassifier | None:
    """Train or resume; tune the mixing on validation images; save the classifier with its report and card.

    Returns:
        What was saved; None in all processes but the first.

    Raises:
        ValueError: If options don't fit together, the data can't be used, or ``out`` holds another run.
    """
    check_options(options)
    set_seed(options.seed)
    with claiming(options.out, SPLIT_FILE):
        return train_classifier(options)


def train_classifier(options: TrainClassifierOptions) -> TrainedClassifier | None:
    """The same, of options that fit together."""
    # What is read at the end is checked before the folder is claimed and the first step is made.
    sources = load_sources(options)
    for note in check_names(options, sources, text_init=options.text_init) if is_first_process() else ():
        print(f"warning: {note}")
    # One process hashes, decodes and scores; the others find it done.
    processes = PartialState(cpu=bool(options.trainer.get("use_cpu")))
    with processes.main_process_first():
        record = describe_classifier_run(options, sources["train"], method=DualHeadMethod.name)
    claim_folder(options.out, record)
    with processes.main_process_first():
        images = decode_images(options, sources)
    for note in check_images(images) if is_first_process() else ():
        print(f"warning: {note}")
    teacher = prepare_teacher(options, images.train, images.split, processes)
    width = teacher.find_feature_width(processes.device) if options.form == "feature-kd" else None
    model = build_student(options, images.train.classes, teacher_feature_size=width)
    method = DualHeadMethod(
        images.train,
        options,
        preprocessing=model.settings.preprocessing,
        cached=teacher.cached,
        teacher=teacher.model if options.teacher_mode == "live" else None,
        fixed_views=options.teacher_views if teacher.cached is not None else 0,
        seed=options.split_seed,
    )
    checkpoint = choose_checkpoint(options.out / "checkpoints")
    ema = None if options.ema_decay is None else EmaCallback(options.ema_decay, checkpoint=checkpoint)
    callbacks = [*([] if ema is None else [ema]), *build_tracking(options, options.out, record["options"])]
    trainer = make_trainer(options, model, method, images.split, callbacks)
    print(
        f"training {count_parameters(model).trainable:,} parameters on {len(images.split.labeled):,} labelled and "
        f"{len(images.split.unlabeled):,} unlabelled images of {len(images.train.classes)} classes"
    )
    train_to_end(trainer, checkpoint)
    if trainer.is_world_process_zero():
        if ema is not None:
            ema.apply(model)
        trained: Any = trainer.accelerator.unwrap_model(trainer.model).eval()
        report = tune_and_score(options, trained, images, teacher)
        save_run(options, trainer, trained, images, report, record)
        return TrainedClassifier(options.out, trained, report)
    return None


def check_options(options: TrainClassifierOptions) -> None:
    """Check what can be checked without data.

    Raises:
        ValueError: If options don't fit together.
    """
    check_choice(options)
    if options.max_steps < 1:
        raise UserError(f"max_steps is {options.max_steps}; both streams are endless, so that steps must be given")
    if options.needs_teacher != (options.teacher is not None):
        raise UserError(f"form {options.form} {'needs --teacher' if options.needs_teacher else 'has no use for --teacher; leave it out'}")
    if options.teacher_kind == "logits" and options.teacher_mode == "live":
        raise UserError("a file of logits can't look at live views; use --teacher-mode cached")
    check_trainer(options)
    if options.trainer.get("neftune_noise_alpha") is not None:
        raise UserError("trainer.neftune_noise_alpha is for embeddings of words, and a classifier of images has none; leave it out")
    if options.gradient_checkpointing:
        raise UserError("gradient_checkpointing is for language models; give a smaller --batch-size and more --gradient-accumulation-steps")
    if options.text_init and options.library != "transformers":
        raise UserError("--text-init needs the text encoder of a CLIP or SigLIP backbone: --library transformers")


def describe_classifier_run(options: ClassifierRunOptions, data: LabeledImages, *, method: str) -> dict[str, Any]:
    """Record what the run is made of: options, and the content of training images, tables and the teacher's files."""
    # A cache inside OUT is begun once OUT is claimed.
    hashes = {"train": data.fingerprint(options.cache_folder if options.cache_folder.is_dir() else None)}
    files = (options.split_file, options.class_names, options.backbone_weights)
    hashes |= {str(path): hash_file(path) for path in files if path is not None}
    if options.teacher is not None and source_path(options.teacher).exists():
        hashes["teacher"] = hash_source(options.teacher)
    return build_record(options, method=method, data=hashes)


def make_trainer(
    options: TrainClassifierOptions, model: DualHead, method: DualHeadMethod, split: LabelSplit, callbacks: Sequence[TrainerCallback]
) -> MethodTrainer:
    """Set up the one trainer with both streams, in their own order.

    Raises:
        ValueError: If the streams are forwarded separately and there are several processes.
    """
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
    return MethodTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        method=method,
        callbacks=[*callbacks, ManifestCallback()],
        optimizers=(build_optimizer(model, options), None),
    )


def tune_and_score(options: TrainClassifierOptions, model: DualHead, images: RunImages, teacher: RunTeacher) -> dict[str, Any]:
    """Tune the mixing on validation images, and score every head and the teacher on validation and test images."""
    split, device = images.split, next(model.parameters()).device
    report: dict[str, Any] = {"form": options.form, "num_labeled": len(split.labeled), "num_unlabeled": len(split.unlabeled)}
    for name, (found, index) in images.scored.items():
        logits, labels = compute_logits(model, found, index), torch.from_numpy(found.labels[index])
        published = None if model.kd_head is None else score_classifier(model, logits, labels, mixing=published_mixing(options))["mixed"]
        if name == "validation" and options.form == "dual-head":
            report["mixing_grid"] = tune_mixing(model, logits, labels, source=str(options.validation_data or "held-out training images"))
        beside = teacher.score_images(found, index, trained=found is images.train, device=device)
        report[name] = score_classifier(model, logits, labels, teacher=beside)
        report[f"num_{name}"] = len(labels)
        if published is not None:
            report[name]["published"] = published
        print(f"{name}, {len(labels):,} images\n{format_scores(report[name])}")
    report["mixing"] = dataclasses.asdict(model.settings.mixing)
    if teacher.cached is not None:
        taught = split.unlabeled[teacher.cached.taught[split.unlabeled].numpy()]
        right = teacher.cached.logits[taught, 0].argmax(-1) == torch.from_numpy(images.train.labels[taught])
        report["teacher_accuracy_unlabeled"] = right.double().mean().item() if len(right) else None
    return report


def save_run(
    options: TrainClassifierOptions,
    trainer: MethodTrainer,
    model: DualHead,
    images: RunImages,
    report: Mapping[str, Any],
    record: dict[str, Any],
) -> None:
    """Save the classifier, its report, the log, and the record and the card that are made of them."""
    model.save_pretrained(options.out)
    if options.form == "feature-kd":
        model.save_backbone(options.out)
    write_whole(options.out / REPORT_FILE, json.dumps(report, indent=1))
    write_whole(options.out / "train_log.json", json.dumps(trainer.state.log_history, indent=1))
    record |= {f"{name}_images": found.fingerprint for name, (found, _) in images.scored.items()}
    record |= {"steps": trainer.state.global_step, "num_rows": len(images.train.ids)}
    record["parameters"] = dataclasses.asdict(count_parameters(model))
    write_record(options.out, record)
    write_classifier_card(options.out, model, record, report)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"saved in {options.out}" + (f"; last loss {losses[-1]:.3f}" if losses else ""))

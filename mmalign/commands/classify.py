"""``mmalign train dual-head | evaluate-classifier | tune-mixing | export``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmalign.training.config import TrainConfig

SetName = Literal[
    "caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101", "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"
]


@dataclass(frozen=True, kw_only=True)
class DualHeadOptions(TrainConfig):
    """Options of ``mmalign train dual-head``."""

    data: Path = field(metadata={"help": "images with classes: parquet, save_to_disk, class folders, a CoOp split file; --set: their root"})
    out: Path = field(metadata={"help": "folder of the classifier; run the same command again to go on after a stop"})
    set: SetName | None = field(default=None, metadata={"help": "one of CoOp's ten fine-grained sets below --data"})
    shots: int | None = field(default=None, metadata={"help": "labelled images a class"})
    label_share: float | None = field(default=None, metadata={"help": "labelled share of the images, the same number of each class"})
    split_file: Path | None = field(default=None, metadata={"help": "labelled and unlabelled images by id, as OUT/split.json holds them"})
    split_seed: int = field(default=1, metadata={"help": "of the labelled images' drawing"})
    validation_data: Path | None = field(default=None, metadata={"help": "images to tune the mixing on; with --set its own are used"})
    validation_share: float = field(default=0.0, metadata={"help": "share of the training images held out to tune the mixing on"})
    test_data: Path | None = field(default=None, metadata={"help": "images for the report at the end; with --set its own are used"})
    cache: Path | None = field(default=None, metadata={"help": "folder of decoded images and teacher logits; OUT/cache if not given"})
    max_reject_share: float = field(default=0.05, metadata={"help": "stop if more than this share of images is broken"})
    license: str | None = field(default=None, metadata={"help": "licence named in the model card"})
    library: Literal["timm", "transformers"] = field(default="timm", metadata={"help": "where the backbone comes from"})
    backbone: str = field(default="resnet18", metadata={"help": "timm's architecture, or a CLIP or SigLIP: folder or hub id"})
    backbone_options: dict[str, Any] = field(default_factory=dict, metadata={"help": "timm's keywords: '{drop_path_rate: 0.1}'"})
    pretrained: bool = field(default=True, metadata={"help": "start from published weights"})
    ce_head: Literal["linear", "mlp"] = field(default="linear", metadata={"help": "head that learns from labels"})
    kd_head: Literal["linear", "mlp", "cosine"] = field(default="linear", metadata={"help": "head that learns from the teacher"})
    text_init: bool = field(default=False, metadata={"help": "start both heads at the class names' embeddings (CLIP or SigLIP backbones)"})
    image_size: int = field(default=224, metadata={"help": "side of the student's input"})
    resize_size: int | None = field(default=None, metadata={"help": "side of the stored squares; 8/7 of the image size if not given"})
    form: Literal["dual-head", "single-head", "ce-only", "kd-only", "feature-kd", "fixmatch"] = field(
        default="dual-head", metadata={"help": "dual-head, or a baseline with one head"}
    )
    label_weight: float = field(default=0.5, metadata={"help": "w in w CE + (1 - w) KD"})
    labeled_kd_weight: float = field(default=1.0, metadata={"help": "of KD on labelled images"})
    unlabeled_kd_weight: float = field(default=1.0, metadata={"help": "of KD on unlabelled images (fixmatch: of pseudo-labels)"})
    temperature: float = field(default=2.0, metadata={"help": "of KD's softmax"})
    threshold: float = field(default=0.95, metadata={"help": "fixmatch: how sure a pseudo-label must be"})
    teacher: str | None = field(
        default=None,
        metadata={"help": "CLIP or SigLIP, open_clip's ARCHITECTURE/TAG, classifier folder, timm architecture, or file of logits"},
    )
    teacher_kind: Literal["zero-shot", "open-clip", "few-shot", "classifier", "timm", "logits"] = field(
        default="zero-shot",
        metadata={"help": "what --teacher is; few-shot: a CLIP fitted on the labelled images; open-clip needs mmalign[open-clip]"},
    )
    prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "zero-shot, open-clip, few-shot: texts with {} or a set of them (imagenet, photo, ...); --set has its own"},
    )
    class_names: Path | None = field(
        default=None,
        metadata={"help": "what prompts call the classes: JSON, CSV or lines 'n01440764 tench'; their own names if not given"},
    )
    teacher_mode: Literal["cached", "live"] = field(default="cached", metadata={"help": "score fixed views once, or each student view"})
    teacher_views: int = field(
        default=0, metadata={"help": "cached: views a image that teacher and student share; 0: the centre, views free"}
    )
    forward: Literal["concatenated", "separate"] = field(default="concatenated", metadata={"help": "what batch norms see together"})
    unlabeled_per_label: int = field(default=1, metadata={"help": "unlabelled images a labelled one in a batch"})
    include_labeled: bool = field(default=False, metadata={"help": "the unlabelled stream has the labelled images too"})
    augmentation: Literal["none", "pad-crop", "random-resized-crop"] = field(
        default="random-resized-crop", metadata={"help": "views in training; pad-crop for images of about 32 pixels"}
    )
    strong_augmentation: bool = field(default=False, metadata={"help": "colour and cut-out on the student's views"})
    ema_decay: float | None = field(default=None, metadata={"help": "save a moving average of the weights, such as 0.999"})
    gradient_cosine_every: int = field(default=0, metadata={"help": "batches between logs of the cosine of CE's and KD's gradients"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    weight_decay: float = field(default=1e-2, metadata={"help": "AdamW's weight decay"})
    warmup_ratio: float = field(default=0.0, metadata={"help": "share of the steps over which the learning rate rises"})
    batch_size: int = field(default=64, metadata={"help": "labelled images a device and micro-batch"})
    max_steps: int = field(default=2000, metadata={"help": "optimiser steps; both streams are endless"})


@dataclass(frozen=True, kw_only=True)
class EvaluateClassifierOptions:
    """Options of ``mmalign evaluate-classifier``."""

    model: Path = field(metadata={"help": "classifier folder", "positional": True})
    data: Path = field(metadata={"help": "images with classes, as train dual-head takes them"})
    set: SetName | None = field(default=None, metadata={"help": "one of CoOp's ten sets below --data"})
    split: Literal["test", "validation", "train"] = field(default="test", metadata={"help": "which part of the data"})
    teacher_logits: Path | None = field(default=None, metadata={"help": "file of the teacher's logits, to stand beside"})
    cache: Path = field(default=Path("runs/images"), metadata={"help": "folder of decoded images"})
    out: Path | None = field(default=None, metadata={"help": "JSON file of the result"})
    batch_size: int = field(default=256, metadata={"help": "images a batch"})


@dataclass(frozen=True, kw_only=True)
class TuneMixingOptions:
    """Options of ``mmalign tune-mixing``."""

    model: Path = field(metadata={"help": "classifier folder; the mixing is written into it", "positional": True})
    data: Path = field(metadata={"help": "validation images with classes"})
    set: SetName | None = field(default=None, metadata={"help": "one of CoOp's ten sets below --data"})
    split: Literal["validation", "train", "test"] = field(default="validation", metadata={"help": "which part; test is refused"})
    cache: Path = field(default=Path("runs/images"), metadata={"help": "folder of decoded images"})
    batch_size: int = field(default=256, metadata={"help": "images a batch"})


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of ``mmalign export``."""

    model: Path = field(metadata={"help": "classifier folder", "positional": True})
    out: Path = field(metadata={"help": "file to write"})
    format: Literal["torch", "onnx"] = field(default="torch", metadata={"help": "torch: a torch.export program; onnx needs mmalign[onnx]"})


def run_train(options: DualHeadOptions) -> None:
    """Train a classifier."""
    from mmalign.commands.dual_head_run import train_classifier

    train_classifier(options)


def run_evaluate(options: EvaluateClassifierOptions) -> None:
    """Print accuracy and calibration of each head, mixed, and the teacher."""
    from mmalign.commands.classifier_report import evaluate_folder

    evaluate_folder(options)


def run_tune(options: TuneMixingOptions) -> None:
    """Tune the mixing on validation images."""
    from mmalign.commands.classifier_report import tune_folder

    tune_folder(options)


def run_export(options: ExportOptions) -> None:
    """Export a classifier."""
    from mmalign.models.dual_head import load_dual_head
    from mmalign.models.export_classifier import export_classifier

    difference = export_classifier(load_dual_head(options.model), options.out, file_format=options.format)
    print(f"saved in {options.out}; largest difference from the checkpoint's probabilities: {difference:.1e}")

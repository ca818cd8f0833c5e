"""The student that the options describe: backbone, heads, preprocessing, and how its heads are mixed before any tuning."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.classifier.backbone import find_statistics, load_backbone, load_weights, read_timm_config, read_tower_config
from mmalign.classifier.dual_head import PUBLISHED_MIXING, CosineHead, DualHead, DualHeadConfig, Mixing, Preprocessing
from mmalign.classifier.prompts import choose_prompts, choose_words, embed_classes
from mmalign.errors import UserError
from mmalign.models.load import load_clip
from mmalign.options.classifier import ClassifierRunOptions, TrainClassifierOptions


def build_student(options: TrainClassifierOptions, classes: Sequence[str], *, teacher_feature_size: int | None) -> DualHead:
    """Build the student, with the weights that it starts from.

    Args:
        options: Of the run.
        classes: The data's.
        teacher_feature_size: Width of the teacher's features, where the student learns to predict them.
    """
    model = build_classifier(
        options,
        classes,
        heads="dual" if options.has_two_heads else "single",
        ce_head=options.ce_head,
        kd_head=options.kd_head,
        teacher_feature_size=teacher_feature_size,
        mixing=published_mixing(options),
    )
    if options.text_init:
        clip, processor = load_clip(options.backbone, dtype="float32")
        words = choose_words(options, classes)
        init_heads_from_text(model, embed_classes(clip, processor, classes=words, prompts=choose_prompts(options)))
    if options.freeze_backbone:
        model.backbone.requires_grad_(False)
    return model


def build_classifier(options: ClassifierRunOptions, classes: Sequence[str], **heads: Any) -> DualHead:
    """Build the options' backbone, with its weights, below random heads.

    Args:
        options: Of the run.
        classes: The data's.
        **heads: Fields of ``DualHeadConfig`` about the heads.
    """
    architecture, values = options.backbone, dict(options.backbone_options)
    if options.library == "transformers":
        architecture, values = read_tower_config(options.backbone)
    config = DualHeadConfig(
        library=options.library,
        architecture=architecture,
        backbone=values,
        classes=tuple(classes),
        preprocessing=Preprocessing(image_size=options.image_size, resize_size=stored_side(options)),
        **heads,
    )
    model = DualHead(config)
    mean, std = find_statistics(options.library, architecture, model.backbone)
    if options.library == "timm":
        architecture, values = read_timm_config(architecture, values)
    preprocessing = dataclasses.replace(config.preprocessing, mean=mean, std=std)
    model.settings = dataclasses.replace(config, architecture=architecture, backbone=values, preprocessing=preprocessing)
    if options.backbone_weights is not None:
        load_weights(model.backbone, options.backbone_weights)
    elif options.pretrained:
        load_pretrained_backbone(model, options.backbone)
    return model


def stored_side(options: ClassifierRunOptions) -> int:
    """The side of the stored squares: what the options say, or by the augmentation."""
    if options.resize_size is not None:
        return options.resize_size
    return options.image_size if options.augmentation == "pad-crop" else round(options.image_size * 8 / 7)


def published_mixing(options: TrainClassifierOptions) -> Mixing:
    """The paper's mixing for such a teacher and so many labels; of its rivals with two heads the CE head alone."""
    if options.form in ("sskd", "dhkd"):
        return Mixing(ce_head_weight=1.0, kd_head_temperature=1.0, source=f"{options.form} uses the CE head alone")
    if options.teacher_kind == "few-shot":
        return PUBLISHED_MIXING["few-shot"]
    return PUBLISHED_MIXING["zero-shot" if options.shots is not None else "low-shot"]


def load_pretrained_backbone(model: DualHead, source: str) -> None:
    """Fill the backbone with published weights, as ``load_backbone`` finds them.

    Raises:
        ValueError: If there are no such weights.
    """
    settings = model.settings
    start = load_backbone(settings.library, settings.architecture, settings.backbone, source=source)
    model.backbone.load_state_dict(start.state_dict())


@torch.no_grad()
def init_heads_from_text(model: DualHead, text_features: Tensor) -> None:
    """Start the heads at the classes' text embeddings (C, D), unit length, biases 0 (arXiv:2505.07675, language-aware initialisation).

    With the text's own vision tower and a cosine KD head the KD logits are the zero-shot model's.

    Raises:
        ValueError: If a head is an MLP, or the widths differ.
    """
    heads = [head for head in (model.ce_head, model.kd_head) if head is not None]
    for head in heads:
        if not isinstance(head, (nn.Linear, CosineHead)):
            raise UserError("a head that is an MLP can't start from text embeddings; choose linear or cosine")
        if head.weight.shape != text_features.shape:
            raise UserError(
                f"text embeddings are {tuple(text_features.shape)} and the head's weight {tuple(head.weight.shape)}; the text must come "
                "from the student's own CLIP or SigLIP, with the same classes"
            )
        head.weight.copy_(F.normalize(text_features.float(), dim=-1))
        if isinstance(head, nn.Linear):
            head.bias.zero_()

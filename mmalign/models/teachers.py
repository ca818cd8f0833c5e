"""Teachers of a classifier: a zero-shot CLIP or SigLIP, a trained classifier, a timm model with its own head.

Shape legend: B = images, C = classes, D = feature width, P = prompts, S = side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.models.dual_head import DualHead, Preprocessing, load_dual_head
from mmalign.models.load import load_clip, named_errors

# CLIP's prompts as used for distillation (arXiv:2505.07675; Tip-Adapter's ensemble for ImageNet). {} is the class name.
PROMPTS: dict[str, tuple[str, ...]] = {
    "imagenet": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "photo": ("a photo of a {}.",),
    "texture": ("{} texture.",),
    "satellite": ("a centered satellite photo of {}.",),
    "aircraft": ("a photo of a {}, a type of aircraft.",),
    "food": ("a photo of {}, a type of food.",),
    "flowers": ("a photo of a {}, a type of flower.",),
    "pets": ("a photo of a {}, a type of pet.",),
    "action": ("a photo of a person doing {}.",),
}


class TeacherOutput(NamedTuple):
    """Logits (B, C) and features (B, D)."""

    logits: Tensor
    features: Tensor


class Teacher(Protocol):
    """Frozen; sees RGB views in [0, 1] of its own side."""

    side: int

    def __call__(self, views: Tensor) -> TeacherOutput:
        """Classify (B, 3, S, S), without gradient."""


class ClassifierTeacher:
    """A classifier that ``train dual-head`` saved; its mixed probabilities are the teacher's, as logits."""

    def __init__(self, model: DualHead, *, device: torch.device) -> None:
        """Freeze the model."""
        self.model = model.requires_grad_(False).eval().to(device)
        self.side = model.settings.preprocessing.image_size

    @torch.no_grad()
    def __call__(self, views: Tensor) -> TeacherOutput:
        """Log of the mixture; with one head its logits."""
        output = self.model(_normalize(views, self.model.settings.preprocessing))
        if self.model.kd_head is None:
            return TeacherOutput(output.ce_logits.float(), output.features.float())
        return TeacherOutput(self.model.mix(output).clamp_min(1e-12).log(), output.features.float())


class TimmTeacher:
    """Any timm classifier with its published weights."""

    def __init__(self, architecture: str, *, num_classes: int, device: torch.device) -> None:
        """Load the weights.

        Raises:
            ValueError: If there are none, or its head has another number of classes.
        """
        with named_errors(architecture):
            self.model = timm.create_model(architecture, pretrained=True).requires_grad_(False).eval().to(device)
        if self.model.num_classes != num_classes:
            raise ValueError(
                f"{architecture} knows {self.model.num_classes} classes and the data have {num_classes}; they must be the same"
            )
        settings = resolve_model_data_config(self.model)
        self.side = settings["input_size"][-1]
        self.preprocessing = Preprocessing(
            image_size=self.side, resize_size=self.side, mean=tuple(settings["mean"]), std=tuple(settings["std"])
        )

    @torch.no_grad()
    def __call__(self, views: Tensor) -> TeacherOutput:
        """The model's own logits."""
        features = self.model.forward_features(_normalize(views, self.preprocessing))
        return TeacherOutput(self.model.forward_head(features).float(), self.model.forward_head(features, pre_logits=True).float())


class ZeroShotTeacher:
    """CLIP or SigLIP with the class names as text: t = scale * cos(image, class)."""

    def __init__(self, source: str, *, classes: Sequence[str], prompts: Sequence[str], device: torch.device) -> None:
        """Embed the classes once."""
        model, self.processor = load_clip(source)
        self.model: Any = model.requires_grad_(False).to(device)
        image = self.processor.image_processor
        size = getattr(image, "crop_size", None) or image.size
        self.side = size["height"] if "height" in size else size["shortest_edge"]
        self.preprocessing = Preprocessing(
            image_size=self.side, resize_size=self.side, mean=tuple(image.image_mean), std=tuple(image.image_std)
        )
        self.text_features = embed_classes(self.model, self.processor, classes=classes, prompts=prompts)

    @torch.no_grad()
    def __call__(self, views: Tensor) -> TeacherOutput:
        """SigLIP's bias is the same for every class and left out."""
        pixels = _normalize(views, self.preprocessing).to(self.model.dtype)
        features = F.normalize(_pooled(self.model.get_image_features(pixel_values=pixels)).float(), dim=-1)
        return TeacherOutput(self.model.logit_scale.exp().float() * features @ self.text_features.t(), features)


@torch.no_grad()
def embed_classes(model: nn.Module, processor: Any, *, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Embed each class: every prompt at unit length, their mean, at unit length again (C, D).

    Raises:
        ValueError: If a prompt has no place for the class name.
    """
    for prompt in prompts:
        if "{}" not in prompt:
            raise ValueError(f"prompt {prompt!r} has no {{}}, the place of the class name")
    rows = []
    device = next(model.parameters()).device
    for name in classes:
        texts = [prompt.format(name.replace("_", " ")) for prompt in prompts]
        # SigLIP was trained on texts padded to its full length, and its text tower sees the padding.
        padding = "max_length" if "siglip" in type(model).__module__ else True
        encoded = processor.tokenizer(texts, return_tensors="pt", padding=padding, truncation=True, max_length=_text_length(model))
        known = {key: value.to(device) for key, value in encoded.items() if key in ("input_ids", "attention_mask")}
        each = F.normalize(_pooled(model.get_text_features(**known)).float(), dim=-1)  # type: ignore[operator]
        rows.append(F.normalize(each.mean(0), dim=-1))
    return torch.stack(rows)


def load_classifier_teacher(source: Path, *, classes: Sequence[str], device: torch.device) -> ClassifierTeacher:
    """Load a checkpoint of ``train dual-head`` as a teacher.

    Raises:
        ValueError: If it knows other classes, or the same in another order.
    """
    model = load_dual_head(source)
    if model.settings.classes != tuple(classes):
        raise ValueError(
            f"teacher {source} knows classes {', '.join(model.settings.classes[:4])}, ... ({len(model.settings.classes)}) and the data "
            f"{', '.join(classes[:4])}, ... ({len(classes)}); expected the same in the same order"
        )
    return ClassifierTeacher(model, device=device)


def _pooled(output: Any) -> Tensor:
    return output.pooler_output if hasattr(output, "pooler_output") else output


def _text_length(model: Any) -> int:
    return model.config.text_config.max_position_embeddings


def _normalize(views: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean, std = (views.new_tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (views - mean) / std

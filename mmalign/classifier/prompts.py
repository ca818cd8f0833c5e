"""Prompts that name a class to a text tower, and the classes' embeddings by them.

Shape legend: C = classes, D = feature width, P = prompts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.classifier.class_names import read_class_names
from mmalign.errors import UserError
from mmalign.models.text_towers import encode_texts, pooled
from mmalign.options.classifier import ClassifierRunOptions, SetName

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
# Kinds of teachers that read the classes' names.
TEXT_TEACHERS = ("zero-shot", "open-clip", "few-shot")
# What CoOp's sets show; the others hold photos of things.
SET_PROMPTS: dict[SetName, tuple[str, ...]] = {
    "oxford_pets": PROMPTS["pets"],
    "flowers102": PROMPTS["flowers"],
    "food101": PROMPTS["food"],
    "fgvc_aircraft": PROMPTS["aircraft"],
    "dtd": PROMPTS["texture"],
    "eurosat": PROMPTS["satellite"],
    "ucf101": PROMPTS["action"],
}


def choose_prompts(options: ClassifierRunOptions) -> tuple[str, ...]:
    """Find the prompts: named ones, texts, the set's own, or "a photo of a {}."."""
    if options.prompts:
        return tuple(text for prompt in options.prompts for text in PROMPTS.get(prompt, (prompt,)))
    return PROMPTS["photo"] if options.set is None else SET_PROMPTS.get(options.set, PROMPTS["photo"])


def choose_words(options: ClassifierRunOptions, classes: Sequence[str]) -> tuple[str, ...]:
    """Find what the classes are called in words: the table's names, or their own."""
    return tuple(classes) if options.class_names is None else read_class_names(options.class_names, classes)


@torch.no_grad()
def embed_classes(model: nn.Module, processor: Any, *, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Embed each class by a transformers model's text tower, as ``average_prompts`` says (C, D)."""

    def encode(texts: list[str]) -> Tensor:
        return pooled(model.get_text_features(**encode_texts(model, processor, texts))).float()  # type: ignore[operator]

    return average_prompts(encode, classes=classes, prompts=prompts)


def average_prompts(encode: Callable[[list[str]], Tensor], *, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Embed each class: every prompt at unit length, their mean, at unit length again (C, D).

    Args:
        encode: P texts -> (P, D).
        classes: Names; underscores stand for spaces.
        prompts: Texts with {}, the place of the name.

    Raises:
        ValueError: If a prompt has no place for the class name.
    """
    for prompt in prompts:
        if "{}" not in prompt:
            raise UserError(f"prompt {prompt!r} has no {{}}, the place of the class name")
    rows = []
    for name in classes:
        each = F.normalize(encode([prompt.replace("{}", name.replace("_", " ")) for prompt in prompts]), dim=-1)
        rows.append(F.normalize(each.mean(0), dim=-1))
    return torch.stack(rows)

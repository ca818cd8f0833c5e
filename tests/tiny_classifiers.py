"""Tiny random classifiers with two heads, on real backbones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch import nn

from mmalign.classifier.dual_head import DualHead, DualHeadConfig, Preprocessing
from mmalign.models.contrastive import build_clip
from mmalign.worlds.tokenizer import train_tokenizer
from tests.tiny_models import CLIP_TOWER, random_image

CLASSES = ("cat", "dog", "frog")
RESNET = {"channels": [4, 8, 8, 16], "stem_width": 4}


def build_tiny_classifier(*, seed: int = 0, tower: bool = False, **options: Any) -> DualHead:
    """A timm ResNet or a CLIP tower; heads are scaled up, so that a wrong mixture moves numbers by tenths."""
    torch.manual_seed(seed)
    if tower:
        values = {key: value for key, value in CLIP_TOWER.items() if key != "model_type"}
        options = {"library": "transformers", "architecture": "clip_vision_model", "backbone": values, **options}
    else:
        options = {"library": "timm", "architecture": "resnet10t", "backbone": RESNET, **options}
    size = 28 if tower else 32
    kinds = {"heads": "dual", "ce_head": "linear", "kd_head": "linear", "preprocessing": Preprocessing(image_size=size, resize_size=size)}
    config = DualHeadConfig(**{"classes": CLASSES, **kinds, **options})
    model = DualHead(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == len(CLASSES):
                module.weight.mul_(20)
    return model


def save_tiny_clip(folder: Path, texts: Sequence[str], *, max_positions: int, **values: Any) -> Path:
    """Save a random CLIP whose tokenizer knows the words of the texts."""
    train_tokenizer(texts).save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = {
        "text_config": {**size, "max_position_embeddings": max_positions},
        "vision_config": {**size, "image_size": 28, "patch_size": 14},
    }
    for part in build_clip({"projection_dim": 16, **towers, **values}, tokenizer=str(folder), seed=0):
        part.save_pretrained(folder)
    return folder


def save_part(path: Path, number: int, seed: int) -> None:
    """Save labelled images of noise, the classes in turn."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES)), "id": Value("string")})
    rows = {"image": [random_image(seed + i) for i in range(number)], "label": [i % 3 for i in range(number)]}
    Dataset.from_dict({**rows, "id": [f"{path.stem}{i}" for i in range(number)]}, features=features).to_parquet(path)


def save_colours(path: Path, number: int, seed: int) -> None:
    """Noisy red, green and blue squares, the classes in turn: what features of random weights tell apart."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(number):
        pixels = rng.integers(0, 120, (32, 32, 3))
        pixels[..., i % 3] += 100
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES)), "id": Value("string")})
    rows = {"image": images, "label": [i % 3 for i in range(number)], "id": [f"{path.stem}{i}" for i in range(number)]}
    Dataset.from_dict(rows, features=features).to_parquet(path)

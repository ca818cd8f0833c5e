"""Rows of data for tiny random models, and the models themselves, which smoke sizes run on too."""

import random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from scripts.smoke_models import CLIP_TOWER, QWEN3, WORDS, build_tiny_llava, build_tokenizer

__all__ = [
    "CLIP_TOWER", "QWEN3", "WORDS", "build_tiny_llava", "build_tokenizer", "fill_adapter", "list_rows", "pair_rows", "random_image",
    "random_text",
]  # fmt: skip


def random_image(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Noise: every pixel differs from image to image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def random_text(seed: int, num_words: int) -> str:
    """Words that the tokenizer knows."""
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def pair_rows(num_rows: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Preference pairs in TRL's conversational form, ragged in length."""
    rng = random.Random(seed)
    rows = []
    for i in range(num_rows):
        chosen, rejected = (random_text(1000 * i + k + seed, rng.randint(2, 9)) for k in (0, 1))
        rows.append(
            {
                "id": f"pair-{i}",
                "images": [random_image(i + seed)],
                "prompt": [{"role": "user", "content": random_text(i + seed, rng.randint(2, 6))}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected + " dog"}],
            }
        )
    return rows


def list_rows(counts: list[int], *, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with this many scored responses each, ragged in length; no two scores of a list are equal."""
    rng = random.Random(seed)
    rows = []
    for i, count in enumerate(counts):
        responses = [f"{random_text(1000 * i + k + seed, rng.randint(2, 9))} {WORDS[k]}" for k in range(count)]
        row = {"id": f"list-{i}", "images": [random_image(i + seed)], "prompt": [{"role": "user", "content": random_text(i + seed, 4)}]}
        row |= {"responses": [[{"role": "assistant", "content": text}] for text in responses]}
        rows.append({**row, "scores": [value / count for value in rng.sample(range(count), count)]})
    return rows


def fill_adapter(policy: nn.Module) -> nn.Module:
    """Give a new adapter's weights values, whose second half is zero otherwise and has no effect."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.05)
    return policy

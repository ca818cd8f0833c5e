"""Tiny random models of real architectures, and rows of data for them, made in memory."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from mmalign.models.compose import ComposeConfig, compose_mllm

WORDS = (
    "there is a red blue green circle square star dog cat on the left right of table yes no what do you see describe".split()  # noqa: SIM905
)

CLIP_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
}
QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    corpus = [" ".join(rng.choices(WORDS, k=12)) + " USER: ASSISTANT:" for _ in range(200)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=500, special_tokens=["<pad>", "<s>", "</s>", "<image>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def build_tiny_llava(
    *, vision: dict[str, Any] | None = None, llm: dict[str, Any] | None = None, seed: int = 0, scale: float = 3.0, **options: Any
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Compose a random model. Weights are scaled up, so that a wrong mask or position moves numbers by tenths and not by 1e-6."""
    with tempfile.TemporaryDirectory() as folder:
        for name, values in (("vision", vision or CLIP_TOWER), ("llm", llm or QWEN3)):
            Path(folder, f"{name}.json").write_text(json.dumps(values))
        build_tokenizer().save_pretrained(Path(folder, "tokenizer"))
        config = ComposeConfig(f"{folder}/vision.json", f"{folder}/llm.json", f"{folder}/tokenizer", seed=seed, **options)
        model, processor = compose_mllm(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "vision_tower" not in name:
                parameter.mul_(scale)
    return model.eval(), processor


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

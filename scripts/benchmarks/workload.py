"""What the benchmarks of speed run on: random LLaVAs with 576 image tokens, pairs of random words, and the page of the results."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mmalign.models.compose import ComposeConfig, compose_mllm

# About 60 million weights each: one as most models are shaped, one whose vocabulary outweighs its layers, as small Qwen models'. For
# accelerators 1.5 billion, of Qwen2.5-1.5B's width and depth with the tower of CLIP ViT-L/14.
SHAPES: dict[str, dict[str, Any]] = {
    "v32k": {"vocab": 32_000, "hidden": 512, "ffn": 1408, "layers": 12, "heads": 8, "vision": (256, 1024, 6, 4)},
    "v150k": {"vocab": 151_936, "hidden": 320, "ffn": 864, "layers": 8, "heads": 5, "vision": (192, 768, 6, 3)},
    "1.5b": {"vocab": 151_936, "hidden": 1536, "ffn": 8960, "layers": 28, "heads": 12, "vision": (1024, 4096, 24, 16)},
    "tiny": {"vocab": 2_048, "hidden": 64, "ffn": 160, "layers": 2, "heads": 4, "vision": (32, 64, 2, 2)},
}
IMAGE_SIZE, PATCH = 336, 14
# A word is 1.4 tokens: prompts of about 40 tokens with the template, responses of about 120.
PROMPT_WORDS, RESPONSE_WORDS = 14, 86
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT |= {"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def words() -> list[str]:
    """Make words of two or three syllables, nearly all of them one token."""
    rng = random.Random(0)
    syllables = [a + b for a in "bcdfghjklmnprstvz" for b in "aeiou"]
    return sorted({"".join(rng.choices(syllables, k=rng.choice((2, 3)))) for _ in range(1500)})


def build_tokenizer(folder: Path) -> None:
    """Train and save a byte-level BPE."""
    rng = random.Random(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [" ".join(rng.choices(words(), k=40)) for _ in range(4000)]
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    image = {"image_token": "<image>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=image, **names).save_pretrained(folder)


def build_model(shape: str, folder: Path, *, dtype: str = "float32", part: int = 1, seed: int = 0) -> Path:
    """Compose and save a random LLaVA with 576 image tokens; kept if it is there.

    Args:
        shape: One of ``SHAPES``.
        folder: Where it is saved.
        dtype: Of the saved weights.
        part: The language model has this part of the width, of the layers and of the feed-forward width: a student's is 2.
        seed: Of the weights.
    """
    if (folder / "config.json").is_file():
        return folder
    values = SHAPES[shape]
    width, ffn, layers, heads = values["vision"]
    tower = {"model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers}
    tower |= {"num_attention_heads": heads, "image_size": IMAGE_SIZE, "patch_size": PATCH, "projection_dim": width}
    llm = {"model_type": "llama", "vocab_size": values["vocab"], "hidden_size": values["hidden"] // part}
    llm |= {"intermediate_size": values["ffn"] // part, "num_hidden_layers": values["layers"] // part}
    llm |= {"num_attention_heads": values["heads"], "num_key_value_heads": values["heads"]}
    llm |= {"max_position_embeddings": 4096, "tie_word_embeddings": True}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vision.json").write_text(json.dumps(tower))
    (folder / "llm.json").write_text(json.dumps(llm))
    build_tokenizer(folder / "tokenizer")
    model, processor = compose_mllm(ComposeConfig(f"{folder}/vision.json", f"{folder}/llm.json", f"{folder}/tokenizer", seed=seed))
    # The config is what says that it is whole: the processor goes first.
    processor.save_pretrained(folder)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def build_pairs(num_rows: int, *, seed: int = 0) -> datasets.Dataset:
    """Make pairs of random words and smooth noise, ragged by a quarter."""
    rng, pixels, vocabulary = random.Random(seed), np.random.default_rng(seed), words()

    def say(count: int) -> str:
        return " ".join(rng.choices(vocabulary, k=count))

    rows = []
    for _ in range(num_rows):
        coarse = Image.fromarray(pixels.integers(0, 255, (21, 28, 3), dtype=np.uint8))
        lengths = [round(RESPONSE_WORDS * rng.uniform(0.75, 1.25)) for _ in range(2)]
        chosen, rejected = ([{"role": "assistant", "content": say(length)}] for length in lengths)
        prompt = [{"role": "user", "content": say(PROMPT_WORDS)}]
        rows.append({"images": [coarse.resize((640, 480))], "prompt": prompt, "chosen": chosen, "rejected": rejected})
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


def resident(name: str) -> float:
    """Read VmRSS (now) or VmHWM (the most since the last reset) of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def write_section(text: str, *, page: Path = PAGE) -> None:
    """Replace the section of the same title in a page, or add it."""
    title, path, page = text.splitlines()[0], page, page.read_text(encoding="utf-8")
    if title in page:
        start = page.index(title)
        ends = [page.find(mark, start + len(title)) for mark in ("\n### ", "\n## ")]
        end = min([end + 1 for end in ends if end >= 0], default=len(page))
        page = page[:start] + text + ("\n" if end < len(page) else "") + page[end:]
    else:
        page = page.rstrip() + "\n\n" + text
    path.write_text(page, encoding="utf-8")


def run_arms(arms: Sequence[str], *, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Run this script's arms in turn, each in a process of its own that prints its figures as JSON on its last line.

    Raises:
        SystemExit: If one fails.
    """
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            command, environment = [sys.executable, *sys.argv, "--arm", arm], {**os.environ, **ENVIRONMENT}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode != 0:
                raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
            results[arm].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{arm}: {json.dumps(results[arm][-1])[:200]}", file=sys.stderr, flush=True)
    return results

"""What the benchmarks of speed share: random LLaVAs with 576 image tokens, pairs of random words, arms, memory, the page of the results.

Each benchmark is a program: ``python scripts/benchmarks/NAME.py --model v32k --write`` puts its table into docs/performance.md.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mmalign.models.compose import compose_mllm
from mmalign.options.models import HalvesOptions

# About 60 million weights each: one as most small models are shaped; one whose vocabulary outweighs its layers, as small Qwen models'; one
# that is wide and has few layers and words, so that attention (13%) and output head (7%) are small parts of it, as in large models (3% and
# 2% of LLaVA-1.5-7B). 15 million where rows are many. For accelerators 1.5 billion, of Qwen2.5-1.5B's width and depth with the tower of
# CLIP ViT-L/14.
SHAPES: dict[str, dict[str, Any]] = {
    "v32k": {"vocab": 32_000, "hidden": 512, "ffn": 1408, "layers": 12, "heads": 8, "vision": (256, 1024, 6, 4)},
    "v150k": {"vocab": 151_936, "hidden": 320, "ffn": 864, "layers": 8, "heads": 5, "vision": (192, 768, 6, 3)},
    "wide": {"vocab": 4_000, "hidden": 1024, "ffn": 2816, "layers": 4, "heads": 16, "vision": (256, 1024, 6, 4)},
    "small": {"vocab": 32_000, "hidden": 256, "ffn": 704, "layers": 6, "heads": 4, "vision": (192, 768, 4, 3)},
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
    model, processor = compose_mllm(
        HalvesOptions(vision=f"{folder}/vision.json", llm=f"{folder}/llm.json", tokenizer=f"{folder}/tokenizer", seed=seed)
    )
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


def start_peak() -> float:
    """Forget the peak of memory so far, and return what is held now in MiB (Linux)."""
    gc.collect()
    # The allocator keeps freed memory: give it back.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def make_parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Make the parser of a benchmark with the options that all have; ``defaults`` are theirs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="v32k", help="shape of the model")
    parser.add_argument("--batch-size", type=int, default=1, help="rows per step")
    parser.add_argument("--rounds", type=int, default=2, help="times that each arm runs, in turn with the others")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder of the models")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.parent.name}/{PAGE.name}")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.set_defaults(**defaults)
    return parser


def prepare_process() -> None:
    """One thread, and no output but the benchmark's own."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def runnable(arms: Sequence[str]) -> list[str]:
    """Leave TRL's arms out where TRL is not installed."""
    return [arm for arm in arms if importlib.util.find_spec("trl") or not arm.startswith("TRL")]


def versions(arms: Iterable[str]) -> str:
    """Name the libraries that these arms measure."""
    named = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    return named + (f", TRL {importlib.metadata.version('trl')}" if any(arm.startswith("TRL") for arm in arms) else "")


def report(title: str, about: str, body: str, *, write: bool) -> None:
    """Print a section with the command that made it, and put it into the page."""
    command = f"python scripts/benchmarks/{Path(sys.argv[0]).name} {shlex.join(word for word in sys.argv[1:] if word != '--write')}".strip()
    text = f"### {title}\n\n```\n{command}\n```\n\nOne thread of {platform.machine()}, float32, {about}\n\n{body}\n"
    print(text)
    if write:
        write_section(text)


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


def run_arms(options: argparse.Namespace, run_arm: Callable[[argparse.Namespace], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Run ``options.arms`` in turn, each in a process of its own, so that a busy machine slows all of them alike.

    The process of an arm is this program with ``--arm``; it runs ``run_arm``, prints its figures as JSON and ends here.

    Raises:
        SystemExit: If one fails.
    """
    options.folder = str(options.work / options.model)
    if options.arm:
        prepare_process()
        print(json.dumps(run_arm(options)))
        raise SystemExit(0)
    build_model(options.model, Path(options.folder))
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for _ in range(options.rounds):
        for arm in options.arms:
            command, environment = [sys.executable, *sys.argv, "--arm", arm], {**os.environ, **ENVIRONMENT}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode != 0:
                raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
            results[arm].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{arm}: {json.dumps(results[arm][-1])[:200]}", file=sys.stderr, flush=True)
    return results

"""Time and memory of one preference step, against TRL's DPOTrainer on the same model and pairs.

    pip install -e '.[benchmark]'
    python scripts/benchmarks/preference_step.py --model v32k

Each arm runs in a process of its own, arms in turn and in several rounds, so that a busy machine slows all of them alike. Process
CPU time is compared, not wall time. TRL runs as shipped (without Triton it scores every position) and "compact", scoring response
positions only, as it does on CUDA; that one choice is forced by a patch. A cached reference is emulated for TRL by handing it
constants: on images it refuses to precompute. The table is printed, and put into docs/performance.md with ``--write``.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_pair
from mmalign.difficulty.generative import score_generative
from mmalign.engine.reference_cache import FINGERPRINT, cache_columns
from mmalign.methods.preference import PreferenceConfig, PreferenceMethod
from mmalign.models.adapters import LoraOptions, add_lora
from mmalign.models.compose import ComposeConfig, compose_mllm
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.training.arguments import build_training_arguments
from mmalign.training.config import TrainConfig
from mmalign.training.trainer import MethodTrainer

# About 60 million weights each: one as most models are shaped, one whose vocabulary outweighs its layers, as small Qwen models'.
SHAPES: dict[str, dict[str, Any]] = {
    "v32k": {"vocab": 32_000, "hidden": 512, "ffn": 1408, "layers": 12, "heads": 8, "vision": (256, 1024, 6, 4)},
    "v150k": {"vocab": 151_936, "hidden": 320, "ffn": 864, "layers": 8, "heads": 5, "vision": (192, 768, 6, 3)},
    "tiny": {"vocab": 2_048, "hidden": 64, "ffn": 160, "layers": 2, "heads": 4, "vision": (32, 64, 2, 2)},
}
IMAGE_SIZE, PATCH = 336, 14
ARMS = ("ours live", "ours cached", "TRL compact live", "TRL compact cached", "TRL shipped live", "TRL shipped cached")
# A word is 1.4 tokens: prompts of about 40 tokens with the template, responses of about 120.
PROMPT_WORDS, RESPONSE_WORDS = 14, 86
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT |= {"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
LORA = LoraOptions(rank=16, alpha=32)


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


def build_model(shape: str, folder: Path) -> Path:
    """Compose and save a random LLaVA with 576 image tokens; kept if it is there."""
    if (folder / "config.json").is_file():
        return folder
    values = SHAPES[shape]
    width, ffn, layers, heads = values["vision"]
    tower = {"model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers}
    tower |= {"num_attention_heads": heads, "image_size": IMAGE_SIZE, "patch_size": PATCH, "projection_dim": width}
    llm = {"model_type": "llama", "vocab_size": values["vocab"], "hidden_size": values["hidden"], "intermediate_size": values["ffn"]}
    llm |= {"num_hidden_layers": values["layers"], "num_attention_heads": values["heads"], "tie_word_embeddings": True}
    llm |= {"num_key_value_heads": values["heads"], "max_position_embeddings": 4096}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vision.json").write_text(json.dumps(tower))
    (folder / "llm.json").write_text(json.dumps(llm))
    build_tokenizer(folder / "tokenizer")
    model, processor = compose_mllm(ComposeConfig(f"{folder}/vision.json", f"{folder}/llm.json", f"{folder}/tokenizer"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
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


class Clock(transformers.TrainerCallback):
    """CPU seconds of each step after the warm-up, and the peak of memory."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.marks: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Linux: forget the peak so far.
        Path("/proc/self/clear_refs").write_text("5")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(time.process_time())

    def result(self) -> dict[str, float]:
        """Median step in CPU seconds, peak resident memory in MiB."""
        marks = self.marks[self.warmup - 1 :]
        peak = next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return {"seconds": statistics.median(b - a for a, b in pairwise(marks)), "peak": peak}


def cache_row(raw: dict[str, Any], model: Any, processor: Any) -> dict[str, Any]:
    """Compute the reference's columns of one pair, as ``mmalign cache-logps`` does."""
    row = read_pair(raw, index=0)
    encoded = encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected])
    chosen, rejected = score_generative(model, [encoded], pad_token_id=processor.tokenizer.pad_token_id)[0]
    return {**cache_columns(encoded, chosen, rejected), FINGERPRINT: "this model"}


def run_ours(options: argparse.Namespace, *, cached: bool) -> dict[str, float]:
    """Train with mmalign's engine."""
    model, processor = load_mllm(options.folder, dtype="float32")
    policy = add_lora(model, LORA) if options.lora else model
    reference = None if cached else Reference(policy, kind="adapter-off" if options.lora else "copy")
    method = PreferenceMethod(processor, PreferenceConfig(), reference=reference, reference_fingerprint="this model")
    pairs = build_pairs(8 * options.batch_size)
    if cached:
        pairs = pairs.map(lambda row: cache_row(row, model, processor))
    steps = options.warmup + options.steps
    config = TrainConfig(learning_rate=1e-5, batch_size=options.batch_size, max_steps=steps, logging_steps=1000, save_steps=1000)
    arguments = build_training_arguments(config, output_dir=Path(options.folder) / "out")
    clock = Clock(options.warmup)
    trainer = MethodTrainer(model=policy, args=arguments, train_dataset=method.prepare(pairs), method=method, callbacks=[clock])
    trainer.train()
    return clock.result()


def run_trl(options: argparse.Namespace, *, cached: bool, compact: bool) -> dict[str, float]:
    """Train with TRL's DPOTrainer."""
    import trl.trainer.utils
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    if compact:
        trl.trainer.utils._use_triton = lambda device: True
    model, processor = load_mllm(options.folder, dtype="float32")
    leaves = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    adapter = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=rf".*language_model.*({leaves})") if options.lora else None
    arguments = DPOConfig(
        output_dir=f"{options.folder}/out", per_device_train_batch_size=options.batch_size, max_steps=options.warmup + options.steps,
        max_length=None, bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none", logging_steps=1000,
        save_strategy="no", learning_rate=1e-5, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    pairs, clock = build_pairs(8 * options.batch_size), Clock(options.warmup)
    trainer = DPOTrainer(
        model=model, args=arguments, train_dataset=pairs, processing_class=processor, peft_config=adapter, callbacks=[clock]
    )
    if cached:
        collate = trainer.data_collator

        def with_constants(rows: Any) -> Any:
            constant = torch.full((len(rows),), -900.0)
            return {**collate(rows), "ref_chosen_logps": constant, "ref_rejected_logps": constant}

        trainer.data_collator, trainer.precompute_ref_logps, trainer.ref_model = with_constants, True, None
    trainer.train()
    return clock.result()


def run_arm(options: argparse.Namespace) -> dict[str, float]:
    """Run one arm in this process."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    kind, cached = options.arm.rsplit(" ", 1)[0], options.arm.endswith("cached")
    if kind == "ours":
        return run_ours(options, cached=cached)
    return run_trl(options, cached=cached, compact=kind == "TRL compact")


def compare(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Run all arms in turn, each in a process of its own."""
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in options.arms}
    for _ in range(options.rounds):
        for arm in options.arms:
            words, environment = [sys.executable, *sys.argv, "--arm", arm], {**os.environ, **ENVIRONMENT}
            done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
            if done.returncode != 0:
                raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
            results[arm].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{arm}: {results[arm][-1]}", file=sys.stderr, flush=True)
    return results


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Write the Markdown table: medians over rounds, the spread of seconds, and how many times ours the others need."""
    medians = {arm: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak")} for arm, runs in results.items()}
    ours = [arm for arm in results if arm.startswith("ours")]
    heads = [f"{what} / {arm}" for what in ("time", "memory") for arm in ours]
    lines = [f"| arm | CPU s a step | range | peak MiB | {' | '.join(heads)} |", f"|---|---:|---|---:|{'---:|' * len(heads)}"]
    for arm, runs in results.items():
        own, seconds = medians[arm], sorted(run["seconds"] for run in runs)
        ratios = [f"{own[key] / medians[base][key]:.2f}" for key in ("seconds", "peak") for base in ours]
        spread = f"{seconds[0]:.2f} to {seconds[-1]:.2f}"
        lines.append(f"| {arm} | {own['seconds']:.2f} | {spread} | {own['peak']:.0f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def section(options: argparse.Namespace, body: str) -> str:
    """Put the command and the machine above the table."""
    import trl

    name = f"{options.model}, {'LoRA' if options.lora else 'full weights'}, {options.batch_size} pair(s) a step"
    words = [word for word in sys.argv[1:] if word != "--write"]
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, TRL {trl.__version__}"
    about = f"One thread of {platform.machine()}, float32, {options.rounds} rounds of {options.steps} steps; {versions}."
    return f"### {name}\n\n```\npython scripts/benchmarks/preference_step.py {' '.join(words)}\n```\n\n{about}\n\n{body}\n"


def write_section(text: str) -> None:
    """Replace the section of the same title in the page, or add it."""
    title, page = text.splitlines()[0], PAGE.read_text(encoding="utf-8")
    if title in page:
        start = page.index(title)
        ends = [page.find(mark, start + len(title)) for mark in ("\n### ", "\n## ")]
        end = min([end + 1 for end in ends if end >= 0], default=len(page))
        page = page[:start] + text + ("\n" if end < len(page) else "") + page[end:]
    else:
        page = page.rstrip() + "\n\n" + text
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Run one arm, or compare them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="v32k")
    parser.add_argument("--lora", action="store_true", help="LoRA of rank 16 on the language model instead of full weights")
    parser.add_argument("--batch-size", type=int, default=1, help="pairs a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder of the models")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder = str(options.work / options.model)
    if options.arm:
        print(json.dumps(run_arm(options)))
        return
    build_model(options.model, Path(options.folder))
    text = section(options, table(compare(options)))
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()

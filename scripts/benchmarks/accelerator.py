"""One arm on one device, as JSON: a preference step or scoring, in bf16 or NF4, or how far FlexAttention is from SDPA.

    python scripts/benchmarks/accelerator.py "preference nf4" --model 1.5b --device cuda

``scripts/gpu_check.sh`` runs all arms, each in a process of its own, and writes the page. Seconds are wall time between device
synchronisations, after a warm-up; tokens are those that go through the language model, a pair's image and prompt once.
"""

import argparse
import json
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate.utils import send_to_device
from bench import SHAPES, build_model, build_pairs, resident
from torch import nn

from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_pair
from mmalign.difficulty.generative import score_generative
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.adapters import add_lora
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from mmalign.options.training import LoraOptions, TrainerOptions
from mmalign.training.arguments import build_training_arguments
from mmalign.training.trainer import MethodTrainer

ARMS = ("preference bfloat16", "preference nf4", "scoring bfloat16", "scoring nf4", "attention bfloat16")
# Times two floating-point operations per weight and token: the policy's forward pass and the gradients to its activations (frozen weights
# have none of their own under LoRA), and the reference's forward pass.
PREFERENCE_PASSES = 3


def load(folder: Path, kind: str, device: str) -> tuple[Any, Any]:
    """Load the model in bf16, or with its language model in NF4."""
    model, processor = load_mllm(str(folder), dtype="bfloat16", quantization="nf4" if kind == "nf4" else "none")
    return model if kind == "nf4" else model.to(device), processor


def synchronize(device: str) -> float:
    """Wait for the device, and return the time."""
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def peak_memory(device: str) -> float:
    """The most memory held so far, in MiB: the device's, or on the CPU the process's."""
    return resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20


def count_weights(model: nn.Module) -> int:
    """Weights of the language model that a token is multiplied by: all but the embedding table; the head counts, tied or not."""
    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    linear = [module for module in text.modules() if isinstance(module, nn.Linear)]
    head = model.get_output_embeddings()
    return sum(module.in_features * module.out_features for module in [*linear, head])


class Clock(transformers.TrainerCallback):
    """Times of the steps' ends."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.marks: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(synchronize(self.device))


class CountingMethod(PreferenceMethod):
    """Counts the tokens of each batch."""

    num_tokens: list[int]

    def collate(self, rows: Any) -> dict[str, Any]:
        """Count what is no padding."""
        batch = super().collate(rows)
        self.num_tokens.append(int((batch["input_ids"] != self.processor.tokenizer.pad_token_id).sum()))
        return batch


def run_preference(options: argparse.Namespace, folder: Path, kind: str) -> dict[str, Any]:
    """Train LoRA with the adapter off as the reference; on a CPU in bf16 too."""
    model, processor = load(folder, kind, options.device)
    weights = count_weights(model)
    policy = add_lora(model, LoraOptions(lora_rank=16, lora_alpha=32))
    method = CountingMethod(processor, PairLossOptions(), reference=Reference(policy, kind="adapter-off"))
    method.num_tokens = []
    steps = options.warmup + options.steps
    config = TrainerOptions(
        learning_rate=1e-5, batch_size=options.batch_size, max_steps=steps, logging_steps=1000, save_steps=100_000, precision="bfloat16",
        trainer={"use_cpu": options.device == "cpu", "save_strategy": "no", "disable_tqdm": True},
    )  # fmt: skip
    arguments = build_training_arguments(config, output_dir=folder / "out")
    clock = Clock(options.device)
    pairs = method.prepare(build_pairs(options.batch_size * steps))
    trainer = MethodTrainer(model=policy, args=arguments, train_dataset=pairs, method=method, callbacks=[clock])
    trainer.train()
    seconds = statistics.median(b - a for a, b in pairwise(clock.marks[options.warmup - 1 :]))
    tokens = statistics.mean(method.num_tokens[options.warmup : steps])
    flops = 2 * PREFERENCE_PASSES * weights * tokens
    return {"seconds": seconds, "pairs": options.batch_size, "tokens": tokens, "flops": flops, "peak": peak_memory(options.device)}


@torch.no_grad()
def run_scoring(options: argparse.Namespace, folder: Path, kind: str) -> dict[str, Any]:
    """Score batches of pairs as ``mmalign score-difficulty`` does with its multimodal LLM."""
    model, processor = load(folder, kind, options.device)
    pad, size = processor.tokenizer.pad_token_id, options.batch_size
    encoded = encode(processor, size * (options.warmup + options.steps))
    marks = [synchronize(options.device)]
    for start in range(0, len(encoded), size):
        score_generative(model, encoded[start : start + size], pad_token_id=pad)
        marks.append(synchronize(options.device))
    seconds = statistics.median(b - a for a, b in pairwise(marks[options.warmup :]))
    tokens = statistics.mean(len(one.prefix_ids) + sum(map(len, one.responses)) for one in encoded) * size
    flops = 2 * count_weights(model) * tokens
    return {"seconds": seconds, "pairs": size, "tokens": tokens, "flops": flops, "peak": peak_memory(options.device)}


@torch.no_grad()
def run_attention(options: argparse.Namespace, folder: Path, kind: str) -> dict[str, Any]:
    """Score one batch with each implementation, and plain rows with SDPA as the measure of what bf16 itself does.

    On an accelerator FlexAttention is compiled; on the CPU it is not asked to be.
    """
    model, processor = load(folder, kind, options.device)
    pad, encoded = processor.tokenizer.pad_token_id, encode(processor, options.batch_size)

    def score(attention: str, *, shared: bool) -> torch.Tensor:
        model.set_attn_implementation({"text_config": attention})
        batch = send_to_device(collate_prompts(encoded, pad_token_id=pad, shared=shared), options.device)
        return compute_response_logps(model, batch).token_logps.float()

    plain, sdpa, flex = score("sdpa", shared=False), score("sdpa", shared=True), score("flex_attention", shared=True)
    return {"flex_from_sdpa": (flex - sdpa).abs().max().item(), "sdpa_from_plain": (sdpa - plain).abs().max().item(), "tokens": len(sdpa)}


def encode(processor: Any, count: int) -> list[Any]:
    """Tokenise random pairs."""
    rows = [read_pair(raw, index=i) for i, raw in enumerate(build_pairs(count))]
    return [encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected]) for row in rows]


RUNS = {"preference": run_preference, "scoring": run_scoring, "attention": run_attention}


def main() -> None:
    """Run one arm and print its numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--model", choices=list(SHAPES), default="1.5b")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder of the models")
    options = parser.parse_args()
    if options.device == "cpu":
        # Quantised models are loaded to the accelerator where there is one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    folder = build_model(options.model, options.work / f"{options.model}-bfloat16", dtype="bfloat16")
    name, kind = options.arm.split()
    print(json.dumps(RUNS[name](options, folder, kind)))


if __name__ == "__main__":
    main()

"""What a reference in 4 bits saves, and how far its numbers are from those of float32.

    python scripts/benchmarks/quantized_reference.py --model runs/demo/sft --pairs runs/demo/world/pairs --write
    python scripts/benchmarks/quantized_reference.py --model runs/demo/sft --pairs runs/demo/world/pairs \
        --eval runs/demo/world/eval --train-steps 300 --write

Each arm scores the same pairs alone in a process of its own; then the float32 model is loaded beside it and both give their whole
next-token distributions on every response token. With ``--train-steps``, DPO trains the float32 policy once against each reference,
all else equal, and POPE and CHAIR are measured. Give it a trained model: on random weights all tokens are alike, and little shows.
"""

import argparse
import json
import platform
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from workload import resident, run_arms, write_section

from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.rows import read_pair
from mmalign.difficulty.generative import score_generative
from mmalign.engine.batch import collate_prompts
from mmalign.engine.vision import image_inputs
from mmalign.models.load import load_mllm
from mmalign.models.precision import Dtype, Quantization
from mmalign.models.quantize import find_four_bit

ARMS: dict[str, tuple[Dtype, Quantization]] = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "nf4": ("float32", "nf4"),
    "nf4-double": ("float32", "nf4-double"),
    "nf4, bfloat16": ("bfloat16", "nf4"),
}
TRAINED = ("none", "nf4")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "quantization.md"
BETA = 0.1


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all weights, tied ones once, with the scales of those in 4 bits."""
    states = [layer.weight.quant_state for layer in find_four_bit(model)]
    scales = [tensor for state in states for tensor in (state.absmax, *((state.state2.absmax,) if state.nested else ()))]
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *scales])


def encode(processor: Any, options: argparse.Namespace) -> list[EncodedPrompt]:
    """Tokenise the first pairs."""
    rows = load_rows(options.pairs).select(range(options.num_pairs))
    read = [read_pair(raw, index=i, image_root=options.image_root) for i, raw in enumerate(rows)]
    return [encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected]) for row in read]


def batches(encoded: list[EncodedPrompt], size: int) -> list[list[EncodedPrompt]]:
    """Cut into batches."""
    return [encoded[i : i + size] for i in range(0, len(encoded), size)]


@torch.no_grad()
def log_distributions(model: Any, encoded: list[EncodedPrompt], *, pad_token_id: int) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary at every response token, by the model's own forward on plain rows."""
    batch = collate_prompts(encoded, pad_token_id=pad_token_id, shared=False)
    layout, images = batch.pop("layout"), image_inputs(model, {"images": batch.pop("images")})
    repeats = layout["repeats"].tolist()
    order = torch.arange(len(repeats)).repeat_interleave(layout["repeats"])
    # Families whose pixels are not one entry a prompt would need their own order here.
    images = {key: value[order] if len(value) == len(repeats) else value for key, value in images.items()}
    return model(**batch, **images).logits.flatten(0, 1)[layout["index"]].float().log_softmax(-1)


def run_arm(options: argparse.Namespace) -> dict[str, Any]:
    """Score all pairs in this process, then compare with the float32 model."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    dtype, quantization = ARMS[options.arm]
    model, processor = load_mllm(str(options.model), dtype=dtype, quantization=quantization)
    pad, encoded = processor.tokenizer.pad_token_id, encode(processor, options)
    parts = batches(encoded, options.batch_size)
    score_generative(model, parts[0], pad_token_id=pad)  # warms up
    start, scores = time.process_time(), []
    for part in parts:
        scores += score_generative(model, part, pad_token_id=pad)
    seconds = time.process_time() - start
    tokens = sum(len(response) for prompt in encoded for response in prompt.responses)
    figures = {"bytes": weight_bytes(model), "seconds": seconds / len(encoded), "tokens": tokens / seconds, "peak": resident("VmHWM")}
    exact, _ = load_mllm(str(options.model), dtype="float32")
    expected = [score for part in parts for score in score_generative(exact, part, pad_token_id=pad)]
    kls = []
    for part in parts:
        p, q = (log_distributions(one, part, pad_token_id=pad) for one in (exact, model))
        kls.append((p.exp() * (p - q)).sum(-1))
    kl = torch.cat(kls)
    moved = torch.cat([(a - b).abs() for got, want in zip(scores, expected, strict=True) for a, b in zip(got, want, strict=True)])
    gap, wanted = (torch.tensor([(chosen.sum() - rejected.sum()).item() for chosen, rejected in one]) for one in (scores, expected))
    return {
        **figures,
        "kl": kl.mean().item(),
        "kl_p99": kl.quantile(0.99).item() if len(kl) < 2**24 else kl.max().item(),
        "moved": moved.mean().item(),
        "gap": wanted.std().item(),
        "shift": (gap - wanted).mean().item(),
        "spread": (gap - wanted).std().item(),
        "same": (gap.sign() == wanted.sign()).float().mean().item(),
    }


def fidelity_section(options: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> str:
    """Lay out the arms."""
    base = {key: statistics.median(run[key] for run in results["float32"]) for key in results["float32"][0]}
    lines = [
        "| weights | MiB | of float32 | CPU time / float32 | KL a token, nats | its 99th percentile | log-prob moved, mean "
        "| margin shift: mean | its std | std / margins' std | same sign |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, runs in results.items():
        own = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        size = f"{own['bytes'] / 2**20:.2f} | {own['bytes'] / base['bytes']:.2f} | {own['seconds'] / base['seconds']:.2f}"
        far = f"{own['kl']:.1e} | {own['kl_p99']:.1e} | {own['moved']:.1e}"
        margins = f"{own['shift']:+.3f} | {own['spread']:.3f} | {own['spread'] / own['gap']:.3f} | {own['same']:.1%}"
        lines.append(f"| {arm} | {size} | {far} | {margins} |")
    about = (
        f"One thread of {platform.machine()}, {options.num_pairs} pairs, medians of {options.rounds} rounds; torch {torch.__version__}. "
        f"float32: {base['tokens']:.0f} response tokens a CPU second; its margins' standard deviation is {base['gap']:.2f} nats."
    )
    return section("### A reference in 4 bits", about, lines)


def train(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train DPO against each reference, and measure what came of it."""
    found = {}
    for quantization in TRAINED:
        work = options.work / f"reference-{quantization}"
        shutil.rmtree(work, ignore_errors=True)
        run(["cache-logps", options.pairs, "--model", options.model, "--quantization", quantization, "--out", work / "cache"])
        words = ["train", "preference", "--model", options.model, "--data", work / "cache" / "cached.parquet", "--out", work / "dpo"]
        words += ["--reference", "cached", "--reference-quantization", quantization, "--max-steps", options.train_steps]
        words += [
            "--batch-size",
            16,
            "--learning-rate",
            1e-4,
            "--warmup-ratio",
            0.1,
            "--beta",
            0.3,
            "--sft-weight",
            4,
            "--seed",
            options.seed,
        ]
        run(words)
        for benchmark, longest in (("pope", 4), ("chair", 64)):
            words = ["evaluate", benchmark, "--model", work / "dpo", "--data", options.eval, "--out", work / "eval"]
            run([*words, "--max-new-tokens", longest, "--batch-size", 100])
        results = [json.loads((work / "eval" / f"{name}.json").read_text())["metrics"] for name in ("pope", "chair")]
        last = [entry for entry in json.loads((work / "dpo" / "train_log.json").read_text()) if "rewards/margin" in entry][-1]
        found[quantization] = {key: value for part in (*results, last) for key, value in part.items()}
    return found


def run(words: list[Any]) -> None:
    """Run a command of mmalign.

    Raises:
        SystemExit: If it fails.
    """
    if mmalign([str(word) for word in words]) != 0:
        raise SystemExit(f"stopped at: mmalign {' '.join(map(str, words))}")


def training_section(options: argparse.Namespace, found: dict[str, dict[str, float]]) -> str:
    """Lay out what training came to."""
    columns = {"POPE F1": "pope/f1", "POPE yes": "pope/yes_ratio", "CHAIR_i": "chair/instance", "CHAIR_s": "chair/sentence"}
    columns |= {"last margin": "rewards/margin", "last accuracy": "rewards/accuracy"}
    lines = [f"| reference | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for quantization, values in found.items():
        name = "float32" if quantization == "none" else quantization
        lines.append(f"| {name} | {' | '.join(f'{values[key]:.3f}' for key in columns.values())} |")
    about = f"DPO, full weights, {options.train_steps} steps of 16 pairs, beta 0.3, seed {options.seed}; only the cached reference differs."
    return section("### Training against a reference in 4 bits", about, lines)


def section(title: str, about: str, lines: list[str]) -> str:
    """Put title, command and machine above a table."""
    words = " ".join(word for word in sys.argv[1:] if word != "--write")
    table = "\n".join(lines)
    return f"{title}\n\n```\npython scripts/benchmarks/quantized_reference.py {words}\n```\n\n{about}\n\n{table}\n"


def main() -> None:
    """Run one arm, or all and the training where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="trained checkpoint")
    parser.add_argument("--pairs", type=Path, required=True, help="preference pairs")
    parser.add_argument("--image-root", type=Path, help="folder that relative image paths start from")
    parser.add_argument("--num-pairs", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16, help="pairs a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-steps", type=int, default=0, help="train DPO against both references for this long, instead of the table")
    parser.add_argument("--eval", type=Path, help="folder of POPE and CHAIR; needed with --train-steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/quantized"), help="folder of the training runs")
    parser.add_argument("--write", action="store_true", help="put the table into docs/quantization.md")
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(run_arm(options)))
        return
    if options.train_steps and options.eval is None:
        parser.error("--train-steps measures what it trained: name the folder of POPE and CHAIR with --eval")
    text = (
        training_section(options, train(options))
        if options.train_steps
        else fidelity_section(options, run_arms(ARMS, rounds=options.rounds))
    )
    print(text)
    if options.write:
        write_section(text, page=PAGE)


if __name__ == "__main__":
    main()

"""What packing chats into rows saves: padding, and CPU time of a supervised step.

    python scripts/benchmarks/packed_chats.py --folder runs/real-short/sft --data runs/real-short/data/sft \
        --image-root runs/real-short/data/images --batch-size 16
    python scripts/benchmarks/packed_chats.py --model v32k      # a random LLaVA, chats of random words: short and long ones

Forward and backward in float32 with a frozen tower, without the optimiser. The loss must be the same.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from bench import build_model, build_pairs, make_parser, prepare_process, report, versions

from mmalign.data.datasets import load_rows
from mmalign.methods.sft import SupervisedMethod
from mmalign.models.adapters import freeze_parts
from mmalign.models.load import load_mllm
from mmalign.options.methods import ChatOptions
from mmalign.tables import markdown_table

ROW_TOKENS = (None, 256, 512, 1024)
TOLERANCE = 1e-4


def build_chats(num_rows: int) -> list[dict[str, Any]]:
    """Chats of random words: every second one a sentence, the others with a paragraph."""
    rows = []
    for number, row in enumerate(build_pairs(num_rows)):
        answer = row["chosen"] if number % 2 else [{"role": "assistant", "content": " ".join(row["chosen"][0]["content"].split()[:12])}]
        rows.append({"images": row["images"], "messages": [*row["prompt"], *answer]})
    return rows


def measure(folder: str, rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> list[list[str]]:
    """Time a step of each packing on the same rows, in turn.

    Raises:
        SystemExit: If a packed loss differs.
    """
    model, processor = load_mllm(folder, dtype="float32")
    freeze_parts(model, ["vision_tower"])
    methods = [SupervisedMethod(processor, ChatOptions(row_tokens=tokens, image_root=options.image_root)) for tokens in ROW_TOKENS]
    batches = [method.collate(rows) for method in methods]
    seconds: list[list[float]] = [[] for _ in ROW_TOKENS]
    losses = [0.0 for _ in ROW_TOKENS]
    for _ in range(options.rounds + 1):
        for number, (method, batch) in enumerate(zip(methods, batches, strict=True)):
            model.zero_grad()
            start = time.process_time()
            loss = method.compute(model, batch).loss_sum
            loss.backward()
            seconds[number].append(time.process_time() - start)
            losses[number] = float(loss.detach())
    if worst := [loss for loss in losses if abs(loss - losses[0]) > TOLERANCE * abs(losses[0])]:
        raise SystemExit(f"packed rows have losses of {worst}, plain ones {losses[0]}")
    # The first round warms up.
    taken = [statistics.median(values[1:]) for values in seconds]
    lines = []
    for tokens, batch, step in zip(ROW_TOKENS, batches, taken, strict=True):
        mask = batch["attention_mask"]
        shape = f"{mask.shape[0]} x {mask.shape[1]}"
        lines.append([str(tokens or "none"), shape, f"{1 - mask.float().mean():.0%}", f"{step:.1f}", f"{step / taken[0]:.2f}"])
    return lines


def main() -> None:
    """Measure one model."""
    parser = make_parser(__doc__, batch_size=16, rounds=3)
    parser.add_argument("--folder", help="checkpoint with a vision tower, instead of a random model")
    parser.add_argument("--data", type=Path, help="chats, instead of random words")
    parser.add_argument("--image-root", type=Path, help="folder that relative image paths start from")
    options = parser.parse_args()
    prepare_process()
    folder = options.folder or str(build_model(options.model, options.work / options.model))
    rows: Sequence[Mapping[str, Any]]
    if options.data:
        data: datasets.Dataset = load_rows(options.data)
        rows = [data[number] for number in range(min(options.batch_size, len(data)))]
    else:
        rows = build_chats(options.batch_size)
    body = markdown_table(["--row-tokens", "rows", "padding", "step, CPU s", "ratio"], measure(folder, rows, options), text=(0, 1))
    report(f"Packed chats, {Path(folder).name}", f"{len(rows)} chats, {options.rounds} rounds; {versions([])}.", body, write=options.write)


if __name__ == "__main__":
    main()

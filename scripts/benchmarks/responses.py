"""A training step on 2, 4 and 8 responses to one image and prompt: one shared row, against a row of its own for each.

    python scripts/benchmarks/responses.py --model v32k --write

Forward and backward pass of the same loss, one thread, in turn in one process. The separate rows are laid out as other trainers do it:
each with its own image, encoded again; logits at response positions only in both.
"""

import argparse
import dataclasses
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from workload import SHAPES, build_model, build_pairs, words, write_section

from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.rows import read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.models.load import load_mllm

ARMS = ("shared row", "separate rows")


def encode(processor: Any, num_responses: int) -> EncodedPrompt:
    """One prompt with so many responses of about 120 tokens."""
    rng = random.Random(num_responses)
    row = read_pair(build_pairs(1)[0], index=0)
    responses = [" ".join(rng.choices(words(), k=round(86 * rng.uniform(0.75, 1.25)))) for _ in range(num_responses)]
    return encode_responses(processor, images=row.images, prompt=row.prompt, responses=responses)


def step(model: Any, prompt: EncodedPrompt, arm: str, *, pad_token_id: int) -> tuple[float, float]:
    """CPU seconds of one forward and backward pass, and the loss."""
    model.zero_grad()
    prompts = [prompt]
    if arm == "separate rows":
        prompts = [
            dataclasses.replace(prompt, responses=[response], scored=[scored])
            for response, scored in zip(prompt.responses, prompt.scored, strict=True)
        ]
    start = time.process_time()
    sums = compute_response_logps(model, collate_prompts(prompts, pad_token_id=pad_token_id)).sums()
    loss = (sums * torch.linspace(-1, 1, len(sums))).sum()
    loss.backward()
    return time.process_time() - start, loss.item()


def main() -> None:
    """Measure all numbers of responses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="v32k")
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder of the models")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load_mllm(str(build_model(options.model, options.work / options.model)), dtype="float32")
    model.train()
    lines = ["| responses | shared row, CPU s | separate rows, CPU s | ratio |", "|---:|---:|---:|---:|"]
    for number in options.responses:
        prompt = encode(processor, number)
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        losses = {}
        for round_number in range(options.rounds + 1):
            for arm in ARMS:
                taken, losses[arm] = step(model, prompt, arm, pad_token_id=processor.tokenizer.pad_token_id)
                if round_number:  # the first one warms up
                    seconds[arm].append(taken)
        assert abs(losses[ARMS[0]] - losses[ARMS[1]]) < 1e-2, losses
        one, other = (statistics.median(seconds[arm]) for arm in ARMS)
        lines.append(f"| {number} | {one:.2f} | {other:.2f} | {other / one:.2f} |")
    given = " ".join(word for word in sys.argv[1:] if word != "--write")
    about = f"One thread of {platform.machine()}, float32, full weights, medians of {options.rounds} rounds; torch {torch.__version__}."
    table = "\n".join(lines)
    text = f"### Responses an image, {options.model}\n\n```\npython scripts/benchmarks/responses.py {given}\n```\n\n{about}\n\n{table}\n"
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()

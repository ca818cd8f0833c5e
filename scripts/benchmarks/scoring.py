"""Pairs scored per CPU second, against the plain way: chosen and rejected as two full rows, all logits, log_softmax.

    python scripts/benchmarks/scoring.py --model v32k --write

Both score the same pairs with the same random LLaVA, and their log-probabilities must agree. Tokenising is in both.
"""

import argparse
import statistics
import time
from typing import Any

import datasets
import torch
from bench import build_pairs, make_parser, report, resident, run_arms

from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.rows import read_pair
from mmalign.difficulty.generative import score_generative
from mmalign.models.load import load_mllm
from mmalign.tables import markdown_table

ARMS = ("ours", "plain")


def encode(processor: Any, pairs: datasets.Dataset) -> list[EncodedPrompt]:
    """Tokenise the pairs."""
    rows = [read_pair(raw, index=i) for i, raw in enumerate(pairs)]
    return [encode_responses(processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected]) for row in rows]


@torch.no_grad()
def score_plain(model: Any, encoded: list[EncodedPrompt], *, pad_token_id: int) -> list[list[float]]:
    """Score a batch as most code does: a padded row a response, its image encoded again, logits at every position."""
    rows = [prompt.prefix_ids + response for prompt in encoded for response in prompt.responses]
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad_token_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    pixels = torch.cat([prompt.images["pixel_values"] for prompt in encoded for _ in prompt.responses])
    logps = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits.float().log_softmax(-1)
    sums, number = [], 0
    for prompt in encoded:
        start = len(prompt.prefix_ids)
        for response in prompt.responses:
            at = logps[number, start - 1 : start + len(response) - 1]
            sums.append(at.gather(-1, torch.tensor(response)[:, None]).sum().item())
            number += 1
    return [sums[i : i + 2] for i in range(0, len(sums), 2)]


def run_arm(options: argparse.Namespace) -> dict[str, Any]:
    """Score all pairs in this process."""
    model, processor = load_mllm(options.folder, dtype="float32")
    pairs = build_pairs(options.pairs + options.batch_size)
    pad = processor.tokenizer.pad_token_id
    sums: list[list[float]] = []
    start = 0.0
    for first in range(0, len(pairs), options.batch_size):
        if first == options.batch_size:  # the first batch warms up
            start = time.process_time()
        encoded = encode(processor, pairs.select(range(first, min(first + options.batch_size, len(pairs)))))
        if options.arm == "ours":
            scores = score_generative(model, encoded, pad_token_id=pad)
            sums += [[chosen.sum().item(), rejected.sum().item()] for chosen, rejected in scores]
        else:
            sums += score_plain(model, encoded, pad_token_id=pad)
    return {"seconds": (time.process_time() - start) / options.pairs, "peak": resident("VmHWM"), "sums": sums}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Write medians over the rounds, and how many times ours the other needs."""
    medians = {arm: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak")} for arm, runs in results.items()}
    rows = []
    for arm, own in medians.items():
        seconds = sorted(run["seconds"] for run in results[arm])
        ratios = [f"{own[key] / medians['ours'][key]:.2f}" for key in ("seconds", "peak")]
        spread = f"{seconds[0]:.2f} to {seconds[-1]:.2f}"
        rows.append([arm, f"{own['seconds']:.2f}", spread, f"{1 / own['seconds']:.2f}", f"{own['peak']:.0f}", *ratios])
    header = ["arm", "CPU s per pair", "range", "pairs per CPU second", "peak MiB", "time / ours", "memory / ours"]
    return markdown_table(header, rows)


def main() -> None:
    """Run one arm, or compare both."""
    parser = make_parser(__doc__, batch_size=2, arms=ARMS)
    parser.add_argument("--pairs", type=int, default=8)
    options = parser.parse_args()
    results = run_arms(options, run_arm)
    ours, plain = (torch.tensor(results[arm][0]["sums"]) for arm in ARMS)
    # Sums over a hundred tokens and more, in float32.
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-3)
    title = f"Scoring, {options.model}, {options.batch_size} pair(s) a batch"
    report(title, f"{options.pairs} pairs in {options.rounds} rounds; torch {torch.__version__}.", table(results), write=options.write)


if __name__ == "__main__":
    main()

"""Answers drawn per CPU second, against stock ``generate``, with one answer per prompt and with eight.

    python scripts/benchmarks/sampling.py --model v32k --write

Both draw from the same random LLaVA at temperature 1 and top p 0.95, the same number of tokens (a random model hardly ever ends), in one
process and in turn, so that a busy machine slows both alike. Tokenising is in neither.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from bench import build_model, build_pairs, make_parser, prepare_process, report, versions

from mmalign.data.encode import EncodedPrompt, encode_questions
from mmalign.data.rows import read_pair
from mmalign.engine.batch import collate_prefixes
from mmalign.engine.choosing import Sampling
from mmalign.engine.generation import generate
from mmalign.engine.prefix import joined, probe_prefix
from mmalign.models.load import load_mllm
from mmalign.tables import markdown_table

TOP_P = 0.95


def encode(processor: Any, count: int) -> list[EncodedPrompt]:
    """Tokenise prompts about images."""
    rows = [read_pair(raw, index=i) for i, raw in enumerate(build_pairs(count))]
    return [encode_questions(processor, images=row.images, prompts=[row.prompt]) for row in rows]


def draw_ours(model: Any, batch: list[EncodedPrompt], *, answers: int, tokens: int, pad: int) -> int:
    """Draw with the sampler; returns the number of tokens."""
    seeds = [[number] for number in range(len(batch))]
    sampling = Sampling(top_p=TOP_P, answers=answers)
    drawn = generate(model, batch, max_new_tokens=tokens, pad_token_id=pad, decoding=sampling, seeds=seeds)
    return sum(len(one.ids) for prompt in drawn for question in prompt for one in question)


@torch.no_grad()
def draw_stock(model: Any, batch: list[EncodedPrompt], *, answers: int, tokens: int, pad: int) -> int:
    """Draw with stock ``generate``, as most code does."""
    rows = collate_prefixes([joined(prompt, 0) for prompt in batch], pad_token_id=pad)
    inputs = send_to_device({"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"], **rows["images"]}, model.device)
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": TOP_P, "top_k": 0, "num_return_sequences": answers}
    out = model.generate(**inputs, **sampling, max_new_tokens=tokens, pad_token_id=pad)
    return int((out[:, rows["input_ids"].shape[1] :] != pad).sum())


ARMS: dict[str, Callable[..., int]] = {"ours": draw_ours, "stock": draw_stock}


def measure(options: argparse.Namespace) -> dict[tuple[int, str], list[float]]:
    """CPU seconds per answer of each round, by answers per prompt and arm."""
    prepare_process()
    folder = build_model(options.model, Path(options.work / options.model))
    model, processor = load_mllm(str(folder), dtype="float32")
    pad = processor.tokenizer.pad_token_id
    encoded = encode(processor, options.batch_size)
    choice = probe_prefix(model, encoded[0], pad_token_id=pad)
    assert choice.shared, choice.reason
    seconds: dict[tuple[int, str], list[float]] = {}
    for number in range(options.rounds + 1):
        for answers in options.answers:
            for arm, draw in ARMS.items():
                start = time.process_time()
                tokens = draw(model, encoded, answers=answers, tokens=options.tokens, pad=pad)
                took = (time.process_time() - start) / (answers * len(encoded))
                assert tokens > 0.9 * options.tokens * answers * len(encoded), f"{arm} ended early: {tokens} tokens"
                if number:  # the first round warms up
                    seconds.setdefault((answers, arm), []).append(took)
    return seconds


def table(seconds: dict[tuple[int, str], list[float]]) -> str:
    """Medians over the rounds; the ratio is that of each round."""
    rows = []
    for (answers, arm), own in seconds.items():
        ratios = sorted(a / b for a, b in zip(own, seconds[answers, "ours"], strict=True))
        median = statistics.median(own)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        rows.append([str(answers), arm, f"{median:.2f}", f"{1 / median:.2f}", f"{statistics.median(ratios):.2f}", spread])
    return markdown_table(["answers per prompt", "arm", "CPU s per answer", "answers per CPU second", "time / ours", "range"], rows)


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__, batch_size=2, rounds=3)
    parser.add_argument("--answers", type=int, nargs="+", default=[1, 8], help="answers per prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    options = parser.parse_args()
    body = table(measure(options))
    about = f"{options.batch_size} prompts of 576 image tokens at once, answers of {options.tokens} tokens, {options.rounds} rounds"
    report(f"Sampling, {options.model}", f"{about}; {versions(ARMS)}.", body, write=options.write)


if __name__ == "__main__":
    main()

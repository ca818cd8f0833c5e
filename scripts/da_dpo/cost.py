"""What a recipe costs on H100-class GPUs, estimated from FLOPs: no GPU was used for these numbers.

    python scripts/da_dpo/cost.py                       # the table of README.md
    python scripts/da_dpo/cost.py --pairs 1000000 --gpus 1 8
    python scripts/da_dpo/cost.py --gpus 1 8 64 --price 3

A forward pass is 2 x weights x tokens, and the attention's products beside. Scoring is one forward pass of the shared row (image, prompt,
both responses), of the multimodal LLM's tower, and of CLIP. Training with LoRA, a cached reference and gradient checkpointing is a forward
pass, the same again, and the gradients of activations, which cost as much: three forward passes of the language model, one of the tower.
Time is that over the peak of dense bfloat16 products times the utilisation. Reading and decoding images is not in it: docs/difficulty.md
says when it is the limit.
"""

import argparse
from dataclasses import dataclass

from mmalign.tables import markdown_table

PEAK = 989e12
"""Dense bfloat16 FLOPs per second of an H100 SXM, by its data sheet."""


@dataclass(frozen=True)
class Shape:
    """What decides a model's FLOPs; for a 640 x 480 photograph."""

    layers: int
    width: int
    text_weights: float
    """Of the language model without the input embeddings."""
    image_tokens: int
    """That the language model sees."""
    tower_weights: float
    patches: int
    """That the tower sees, over all tiles."""


SHAPES = {
    "llava-1.5-7b": Shape(32, 4096, 6.61e9, 576, 0.30e9, 577),
    "llava-1.5-13b": Shape(40, 5120, 12.85e9, 576, 0.30e9, 577),
    "qwen2.5-vl-3b": Shape(36, 2048, 3.09e9, 391, 0.67e9, 1564),
    "qwen3-vl-2b": Shape(28, 2048, 1.72e9, 300, 0.30e9, 1200),
    "smolvlm2-2.2b": Shape(24, 2048, 1.71e9, 1053, 0.41e9, 13 * 729),
}
"""From the models' published configurations, with an output head also where it is tied."""
CLIP_TOWER, CLIP_PATCHES = 0.30e9, 577
CLIP_TEXT, SENTENCES, TEXT_LENGTH = 0.085e9, 10, 77


def language_model(shape: Shape, prompt: int, response: int) -> float:
    """FLOPs of one forward pass over a pair's shared row."""
    tokens = shape.image_tokens + prompt + 2 * response
    return 2 * shape.text_weights * tokens + 4 * shape.layers * shape.width * tokens**2 / 2


def scoring(shape: Shape, prompt: int, response: int) -> float:
    """FLOPs of scoring a pair."""
    clip = 2 * CLIP_TOWER * CLIP_PATCHES + 2 * CLIP_TEXT * TEXT_LENGTH * SENTENCES
    return language_model(shape, prompt, response) + 2 * shape.tower_weights * shape.patches + clip


def training(shape: Shape, prompt: int, response: int) -> float:
    """FLOPs of training on a pair."""
    return 3 * language_model(shape, prompt, response) + 2 * shape.tower_weights * shape.patches


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=40, help="tokens")
    parser.add_argument("--response", type=int, default=100, help="tokens of each response")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that is reached")
    parser.add_argument("--price", type=float, help="dollars per GPU hour: adds what both stages cost")
    options = parser.parse_args()
    counts = [f"{number} GPU{'s' if number > 1 else ''}" for number in options.gpus]
    stages = [f"{stage}, {count}" for stage in ("scoring", "training") for count in counts]
    rows = []
    for name, shape in SHAPES.items():
        flops = [stage(shape, options.prompt, options.response) for stage in (scoring, training)]
        hours = [options.pairs * value / (PEAK * options.utilisation) / 3600 / number for value in flops for number in options.gpus]
        rows.append([name, *(f"{value / 1e12:.1f}" for value in flops), *(f"{hour:.2g} h" for hour in hours)])
        if options.price is not None:
            rows[-1].append(f"{sum(flops) * options.pairs / (PEAK * options.utilisation) / 3600 * options.price:.2g}")
    price = [] if options.price is None else ["dollars, both"]
    print(markdown_table(["recipe", "TFLOPs per pair: scoring", "training", *stages, *price], rows))


if __name__ == "__main__":
    main()

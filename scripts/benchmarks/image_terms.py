"""Time and memory of one step of the objectives that compare images: an image once with all its responses, or a full row for every cell.

    python scripts/benchmarks/image_terms.py --model v32k

The papers' code lays every cell out as a row of its own. Here that layout runs in the same trainer, with the same output head and with each
image encoded once: what is compared is the rows alone, and the papers' code is slower by what it does beside them. The vision tower is
frozen, as in the papers. Process CPU time is compared. ``computed`` is the ratio of tokens.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from bench import build_pairs, make_parser, report, run_arms, versions
from datasets import Dataset, List
from datasets import Image as ImageFeature
from PIL import Image
from preference_step import Clock

from mmalign.methods.preference import PreferenceMethod
from mmalign.models.adapters import freeze_parts
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from mmalign.options.training import TrainerOptions
from mmalign.tables import markdown_table
from mmalign.training.arguments import build_training_arguments
from mmalign.training.trainer import MethodTrainer

OBJECTIVES = ("dpo", "mdpo", "vdpo", "svco", "symmpo")
LAYOUTS = ("shared", "rows")
ARMS = tuple(f"{name} {layout}" for name in OBJECTIVES for layout in LAYOUTS)


def build_rows(number: int) -> Dataset:
    """The benchmarks' pairs, each with another image and an answer of its own to that."""
    pixels = np.random.default_rng(1)
    others = [Image.fromarray(pixels.integers(0, 255, (21, 28, 3), dtype=np.uint8)).resize((640, 480)) for _ in range(number)]
    answers = build_pairs(number, seed=1)["chosen"]
    rows = [
        {**row, "images_other": [other], "chosen_other": answer[0]["content"]}
        for row, other, answer in zip(build_pairs(number), others, answers, strict=True)
    ]
    images = List(ImageFeature())
    return Dataset.from_list(rows).cast_column("images", images).cast_column("images_other", images)


def run_arm(options: argparse.Namespace) -> dict[str, Any]:
    """Train with one objective in one layout."""
    name, layout = options.arm.split()
    policy, processor = load_mllm(options.folder, dtype="float32")
    freeze_parts(policy, ["vision_tower"])
    method = PreferenceMethod(processor, PairLossOptions(objective=[name]), reference=Reference(policy, kind="copy"))
    method.shared = layout == "shared"
    rows = build_rows(4 * options.batch_size)
    steps = options.warmup + options.steps
    config = TrainerOptions(learning_rate=1e-5, batch_size=options.batch_size, max_steps=steps, logging_steps=1000, save_steps=1000)
    arguments, clock = build_training_arguments(config, output_dir=Path(options.folder) / "out"), Clock(options.warmup)
    prepared = method.prepare(rows)
    MethodTrainer(model=policy, args=arguments, train_dataset=prepared, method=method, callbacks=[clock]).train()
    # Attention is masked beyond a row's own tokens: count what the model is given.
    tokens = int(method.collate([prepared[i] for i in range(options.batch_size)])["attention_mask"].sum())
    return {**clock.result(), "tokens": tokens}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Write the Markdown table: medians of each layout, and how many times the shared one the other needs."""
    rows = []
    for name in dict.fromkeys(arm.split()[0] for arm in results):
        shared, apart = (results[f"{name} {layout}"] for layout in LAYOUTS)
        seconds = [sorted(value for run in runs for value in run["seconds"]) for runs in (shared, apart)]
        medians = [statistics.median(values) for values in seconds]
        added = [statistics.median(run["added"] for run in runs) for runs in (shared, apart)]
        ratios = [apart[0]["tokens"] / shared[0]["tokens"], medians[1] / medians[0], added[1] / added[0]]
        spread = [f"{value:.2f} ({values[0]:.2f} to {values[-1]:.2f})" for value, values in zip(medians, seconds, strict=True)]
        rows.append([f"`{name}`", *spread, *(f"{value:.2f}" for value in ratios)])
    heads = ["objective", "shared, CPU s per step", "a row per cell", "computed", "time", "added memory"]
    return markdown_table(heads, rows, text=(0, 1, 2))


def main() -> None:
    """Run one arm, or compare them all."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="both layouts of each objective")
    options = parser.parse_args()
    results = run_arms(options, run_arm)
    title = f"Objectives that compare images, {options.model}, {options.batch_size} row(s) per step"
    report(title, f"{options.rounds} rounds of {options.steps} steps; {versions(options.arms)}.", table(results), write=options.write)


if __name__ == "__main__":
    main()

"""How much of a preference step a frozen vision tower takes: what keeping its features from epoch to epoch could save at most.

    python scripts/benchmarks/frozen_tower.py --folder runs/real-medium/sft     # a checkpoint of yours
    python scripts/benchmarks/frozen_tower.py --model v32k                      # a random LLaVA with 576 image tokens

Process CPU time of one step in float32: forward of policy and reference, backward of the policy, without the optimiser.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import build_model, build_pairs, make_parser, prepare_process, report, versions

from mmalign.engine.vision import encode_frozen_images
from mmalign.methods.preference import PreferenceMethod
from mmalign.models.adapters import freeze_parts
from mmalign.models.load import load_mllm
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from mmalign.tables import markdown_table


def measure(folder: str, options: argparse.Namespace) -> list[str]:
    """Time the tower and the whole step on the same pairs, in turn."""
    policy, processor = load_mllm(folder, dtype="float32")
    freeze_parts(policy, ["vision_tower"])
    inner: Any = policy
    for weight in inner.model.multi_modal_projector.parameters():
        # A projector that trains is no part of what could be kept; a frozen one is.
        weight.requires_grad_(False)
    method = PreferenceMethod(processor, PairLossOptions(), reference=Reference(policy, kind="copy"))
    batch = method.collate(list(method.prepare(build_pairs(options.batch_size))))

    def step() -> None:
        policy.zero_grad()
        method.compute(policy, batch).loss_sum.backward()

    seconds: dict[str, list[float]] = {"tower": [], "step": []}
    for _ in range(options.rounds + 1):
        seconds["tower"].append(timed(lambda: encode_frozen_images(inner, batch)))
        seconds["step"].append(timed(step))
    # The first round warms up.
    tower, whole = (statistics.median(values[1:]) for values in seconds.values())
    tokens = int((batch["input_ids"] == processor.image_token_id).sum() / options.batch_size)
    return [Path(folder).name, str(tokens), f"{tower:.2f}", f"{whole:.2f}", f"{tower / whole:.1%}"]


def timed(run: Callable[[], Any]) -> float:
    """CPU seconds that something takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure one model."""
    parser = make_parser(__doc__, batch_size=4, rounds=3)
    parser.add_argument("--folder", help="checkpoint with a vision tower, instead of a random model")
    options = parser.parse_args()
    prepare_process()
    folder = options.folder or str(build_model(options.model, options.work / options.model))
    heads = ["model", "image tokens", "tower, CPU s", "step, CPU s", "share"]
    title = f"A frozen tower's share of a step, {Path(folder).name}"
    body = markdown_table(heads, [measure(folder, options)], text=(0,))
    report(title, f"{options.batch_size} pairs, {options.rounds} rounds; {versions([])}.", body, write=options.write)


if __name__ == "__main__":
    main()

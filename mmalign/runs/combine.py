"""``mmalign combine-adapters``: the weighted sum of several LoRA adapters as one, as COFS-DPO joins what was learnt domain by domain."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from mmalign.data.datasets import load_rows
from mmalign.data.rows import check_columns
from mmalign.errors import UserError
from mmalign.files import COMBINATION_FILE, open_to_readers, write_whole, writing
from mmalign.methods.policy_and_reference import compute_policy, compute_reference
from mmalign.methods.preference import PreferenceMethod
from mmalign.methods.responses import model_inputs
from mmalign.models.combination import Combination
from mmalign.models.load import best_device, load_processor
from mmalign.models.processors import give_padding
from mmalign.models.quantize import recorded_quantization
from mmalign.models.references import Reference
from mmalign.options.methods import PairLossOptions
from mmalign.options.models import CombineOptions
from mmalign.tables import text_table

GRID_STEPS = 10
"""Weights are multiples of 1 / this."""


def run(options: CombineOptions) -> None:
    """Find the weights where none are given, and write the adapter with them.

    Raises:
        ValueError: If ``out`` is not empty, the adapters don't fit each other, or the data can't be read.
    """
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"{options.out} is not empty; choose another --out")
    processor = load_processor(options.adapters[0])
    give_padding(processor.tokenizer)
    quantization = find_quantization(options)
    combination = Combination(options.adapters, dtype=options.dtype, quantization=quantization)
    combination.model.to(best_device())
    points = [tuple(options.weights)] if options.weights else list(simplex(len(options.adapters), GRID_STEPS))
    losses = [measure(combination, processor, data, points, options) for data in options.data]
    means = [sum(values) / len(values) for values in zip(*losses, strict=True)] if losses else [0.0]
    best = min(range(len(points)), key=means.__getitem__)
    with writing(options.out):
        combination.save(options.out, points[best])
        processor.save_pretrained(options.out)
    record = {"adapters": options.adapters, "weights": points[best], "data": list(map(str, options.data)), "pairs": options.max_pairs}
    record |= {"quantization": quantization, "beta": options.beta}
    record |= {"losses": [[point, list(values)] for point, *values in zip(points, *losses, strict=True)]}
    write_whole(options.out / COMBINATION_FILE, json.dumps(record, indent=1))
    open_to_readers(options.out)
    if losses:
        print(describe(points, losses, means, best=best, data=options.data))
    total = " + ".join(f"{weight:g} {source}" for weight, source in zip(points[best], options.adapters, strict=True))
    print(f"{total} saved in {options.out}")


def simplex(count: int, steps: int) -> Iterator[tuple[float, ...]]:
    """All weights of so many parts that are multiples of 1 / ``steps`` and sum to 1, those of the first part rising."""

    def split(parts: int, left: int) -> Iterator[tuple[int, ...]]:
        if parts == 1:
            yield (left,)
            return
        for first in range(left + 1):
            yield from ((first, *rest) for rest in split(parts - 1, left - first))

    yield from (tuple(part / steps for part in parts) for parts in split(count, steps))


def find_quantization(options: CombineOptions) -> Any:
    """How the base is held: as in training, unless said otherwise."""
    if options.quantization is not None:
        return options.quantization
    held = {source: recorded_quantization(source) for source in options.adapters}
    if len(set(held.values())) > 1:
        said = ", ".join(f"{source} in {name}" for source, name in held.items())
        raise UserError(f"the adapters' bases were held differently ({said}); say with --quantization how to measure")
    return held[options.adapters[0]]


@torch.no_grad()
def measure(
    combination: Combination, processor: Any, data: Path, points: Sequence[Sequence[float]], options: CombineOptions
) -> list[float]:
    """Return DPO's mean loss of each weighting on pairs spread over the data; the reference is the base."""
    loss = PairLossOptions(image_root=options.image_root, beta=options.beta, answer_end=options.answer_end)
    method = PreferenceMethod(processor, loss, reference=Reference(combination.model, kind="adapter-off"))
    rows = load_rows(data)
    check_columns(rows.column_names, method.columns, what=str(data))
    method.check_dataset(rows)
    number = min(options.max_pairs, len(rows))
    rows = method.prepare(rows.select([place * len(rows) // number for place in range(number)]))
    for index, row in enumerate(rows):
        method.check(row, index=index)
    method.start(combination.model, [rows[place] for place in range(min(method.start_rows, number))])
    sums = [0.0] * len(points)
    for start in range(0, number, options.batch_size):
        batch = method.collate([rows[place] for place in range(start, min(start + options.batch_size, number))])
        batch = send_to_device(batch, best_device())
        inputs = model_inputs(batch)
        frozen = compute_reference(combination.model, inputs, method.reference)
        for place, weights in enumerate(points):
            combination.weigh(weights)
            pairs = method.make_pairs(batch, compute_policy(combination.model, inputs, frozen), frozen.reference)
            sums[place] += method.compute_pairs(pairs).loss_sum.item()
    return [value / number for value in sums]


def describe(
    points: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], means: Sequence[float], *, best: int, data: Sequence[Path]
) -> str:
    """Lay out the losses of the weights that were taken, and of each adapter alone."""
    shown = [best, *(place for place, point in enumerate(points) if 1.0 in point and place != best)]
    lines = [
        (" ".join(f"{weight:g}" for weight in points[place]), *(f"{values[place]:.4f}" for values in losses), f"{means[place]:.4f}")
        for place in shown
    ]
    return text_table([("weights", *(path.stem for path in data), "mean"), *lines])

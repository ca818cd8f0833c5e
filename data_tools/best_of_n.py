"""Pick the best of several saved answers to each prompt by their scores, and tell what the best of n is worth.

    python data_tools/sample_pairs.py world/eval --model policy --scorer truth --samples 16 --lists --out sampled
    mmalign score-rewards sampled/lists --model rm --out rewards
    python data_tools/best_of_n.py rewards/rewarded.parquet --truth given_scores --out best

DATA are rows of responses and scores: of ``sample_pairs.py --lists`` with any scorer, of ``mmalign score-rewards``, of
``convert_pairs.py --lists``. Writes OUT/best_of_n.json (the mean score of the best of n for n = 1, 2, 4 and so on, by an unbiased
estimate from all N saved answers; with --truth, what another column says of the answers picked), OUT/pairs (the best against the worst)
and OUT/chats (the best answers, for train sft).

Cost: no model is asked; some thousand rows per second.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.program import run_program
from mmalign.data.numbers import is_finite
from mmalign.errors import UserError
from mmalign.options.base import Options

NAME = "best-of-n"


@dataclass(frozen=True, kw_only=True)
class BestOptions(Options):
    """Options of ``best_of_n.py``."""

    data: Path = field(metadata={"positional": True})
    """rows of responses and scores: parquet, json or jsonl file, or folder of them"""
    out: Path
    """folder of best_of_n.json, pairs/*.parquet and chats/*.parquet"""
    by: str = "scores"
    """column of the scores that answers are picked by, one for each response"""
    truth: str | None = None
    """column of other scores, which tell what the picked answers are worth: given_scores after mmalign score-rewards"""
    largest_n: int | None = None
    """largest n; rows with fewer responses are left out. The smallest number of responses of any row if not given"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""
    embed_images: bool = True
    """put images that are paths into the Parquet files as bytes"""
    resamples: int = 2000
    """bootstrap resamples of prompts for the 95% intervals"""
    seed: int = 0
    """of the resamples"""


def run(options: BestOptions) -> None:
    """Read the scores, print and write the curve, then write pairs and chats.

    Raises:
        ValueError: If OUT exists, a row has not a number for each response, or no row has enough of them.
    """
    from mmalign import __version__
    from mmalign.data.datasets import hash_data_files, load_rows
    from mmalign.data.rows import check_columns
    from mmalign.files import whole
    from mmalign.tables import text_table

    if options.out.exists():
        raise UserError(f"{options.out} exists; choose another --out, or remove it")
    columns = [options.by] if options.truth is None else [options.by, options.truth]
    dataset = load_rows(options.data)
    check_columns(dataset.column_names, ("prompt", "responses", *columns), what=str(options.data))
    numbers = [_read_scores(row, index, columns) for index, row in enumerate(dataset.select_columns(["responses", *columns]))]
    curve = measure(numbers, options)
    with whole(options.out) as partial:
        counts = _write_rows(dataset, options, partial)
        record = {
            "data": hash_data_files(options.data),
            "by": options.by,
            "truth": options.truth,
            "num_rows": len(dataset),
            **curve,
            **counts,
            "resamples": options.resamples,
            "seed": options.seed,
            "mmalign": __version__,
        }
        (partial / "best_of_n.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text_table(_table(curve["curve"])))
    print(f"{curve['num_prompts']:,} of {len(dataset):,} prompts; {counts['pairs']:,} pairs and {counts['chats']:,} chats in {options.out}")


def measure(numbers: Sequence[Sequence[Sequence[float]]], options: BestOptions) -> dict[str, Any]:
    """Estimate the mean of each column for the best of n, with intervals over prompts.

    Args:
        numbers: For each prompt the scores that answers are picked by and, perhaps, what they are worth.
        options: Which n, and how to resample.
    """
    import numpy as np

    from mmalign.evaluation.intervals import check_bootstrap, interval_of, resample
    from mmalign.evaluation.metrics import Sums
    from mmalign.rewards.best_of import bound_divergence, expect_best

    check_bootstrap(level=0.95, resamples=options.resamples)
    largest = min(len(row[0]) for row in numbers) if options.largest_n is None else options.largest_n
    kept = [row for row in numbers if len(row[0]) >= largest]
    if largest < 1 or not kept:
        raise UserError(f"largest_n is {largest}; expected 1 to {max(len(row[0]) for row in numbers)}, the most responses of a row")
    # With a truth also what picking by it would give: no pick does better.
    picks = {"score": (0, 0)} if options.truth is None else {"score": (0, 0), "truth": (1, 0), "truth_at_best": (1, 1)}
    curve = []
    for n in sorted({*(2**power for power in range(largest.bit_length())), largest}):
        means = np.array([[expect_best(row[value], row[by], n) for value, by in picks.values()] for row in kept])
        drawn = resample(Sums({}, means), resamples=options.resamples, seed=options.seed).totals / len(kept)
        found = {name: interval_of(float(means[:, i].mean()), drawn[:, i], 0.95) for i, name in enumerate(picks)}
        curve.append({"n": n, "kl_bound": bound_divergence(n), **{name: one._asdict() for name, one in found.items()}})
    return {"num_prompts": len(kept), "curve": curve}


def _read_scores(row: Mapping[str, Any], index: int, columns: Sequence[str]) -> list[list[float]]:
    responses = row["responses"]
    if not isinstance(responses, list) or not responses:
        raise UserError(f"row {index} has {responses!r} as responses; expected a list of texts")
    for name in columns:
        values = row[name] if isinstance(row[name], list) else []
        if len(values) != len(responses) or not all(map(is_finite, values)):
            raise UserError(f"row {index} has {len(responses)} responses, and {name} is {row[name]}; expected a finite number for each")
    return [[float(value) for value in row[name]] for name in columns]


def _table(curve: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[object]]:
    names = [name for name in curve[0] if name not in ("n", "kl_bound")]
    yield ["n", "KL at most", *(name.replace("_", " ") for name in names)]
    for one in curve:
        cells = [f"{one[name]['value']:.3f} [{one[name]['low']:.3f}, {one[name]['high']:.3f}]" for name in names]
        yield [str(one["n"]), f"{one['kl_bound']:.2f}", *cells]


def _write_rows(dataset: Any, options: BestOptions, out: Path) -> dict[str, int]:
    """Write each row's best answer as a chat, and its best against its worst as a pair where they differ in score."""
    from data_tools.row_files import RowWriter, written_row

    writers = {name: RowWriter(out / name, name=name, shard_rows=2000) for name in ("pairs", "chats")}
    for index, row in enumerate(dataset):
        try:
            best = _best_rows(row, index, options.by)
        except UserError as error:
            raise UserError(f"row {index} can't be used: {error}") from error
        for name, made in best.items():
            writers[name].add(written_row(made, root=options.image_root, embed=options.embed_images))
    for writer in writers.values():
        writer.close()
    return {name: writer.num_rows for name, writer in writers.items()}


def _best_rows(row: Mapping[str, Any], index: int, by: str) -> dict[str, Any]:
    from data_tools.chat_sets import Chat
    from data_tools.fields import assistant
    from data_tools.pair_sets import Pair
    from data_tools.scoring import best_and_worst
    from mmalign.data.rows import place_row_images, read_prompt, response_text, row_id

    # An empty answer is text, and in no other form.
    texts = [value if isinstance(value, str) else response_text(value, "response") for value in row["responses"]]
    scores = row[by]
    prompt, images = place_row_images(row, read_prompt(row["prompt"], "prompt"), "prompt")
    best = {"role": "assistant", "content": [{"type": "text", "text": texts[scores.index(max(scores))]}]}
    name, source = row_id(row, index=index), "/".join(filter(None, (row.get("source"), NAME)))
    made: dict[str, Any] = {"chats": Chat(name, source, images, [*prompt, best])}
    found = best_and_worst(texts, scores)
    if found is not None:
        sides = (assistant(found.chosen), assistant(found.rejected))
        made["pairs"] = Pair(name, source, images, prompt, *sides, scores=found.scores)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, BestOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())

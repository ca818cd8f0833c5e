"""Is a tree search worth its tokens? Step pairs of a search against the best and the worst of as many sampled tokens.

    python -m scripts.studies.search_pairs --processes 2           # everything
    python -m scripts.studies.search_pairs --processes 2 --quick   # one seed, fewer steps, fewer scenes

For each seed, the start's descriptions of new scenes are searched (``data_tools/search_pairs.py``), with the truth or with the start's own
P(yes) as value. Then so many answers to the same questions are sampled (``data_tools/sample_pairs.py``) that they have as many tokens as
the trees, and the best makes a pair with the worst: by the truth, or by the start's P(yes) of the whole answer. Arms train the same
number of steps, with the beta and the learning rate that a search of their own found by the object F1 of validation captions.
``--report docs/studies`` writes the published page.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from data_tools.sample_pairs import SampleOptions
from data_tools.sample_pairs import run as sample_pairs
from data_tools.search_pairs import SearchOptions
from data_tools.search_pairs import run as search_pairs
from mmalign.data.datasets import load_rows
from mmalign.data.shards import read_lines
from mmalign.files import read_json
from scripts.studies.search_pairs_grid import Cell, DataCell, best_of, count_scenes, count_steps, list_cells, list_searches
from scripts.studies.search_pairs_page import write_page
from scripts.studies.study import main, run_missing, slug, write_json, write_run
from scripts.studies.world import BATCH, make_start, measure, measure_start, object_f1, run

PARTS = ("chair", "pope")
LONGEST, TREES, ITERATIONS = 64, 100, 64


def make_data(cell: DataCell, out: Path, *, scenes: int, smoke: bool) -> str:
    """Search and sample the start's answers to a seed's scenes; keep how many tokens and pairs each has."""
    folder, start = cell.folder(out), str(out / "start" / "sft")
    if not (folder / "world" / "world.json").is_file():
        run(["world", "build", "--out", folder / "world", "--seed", cell.seed, "--num-scenes", 1, "--num-pairs", 1, "--num-workers", 1,
             "--num-eval-scenes", scenes])  # fmt: skip
    source, searched, sampled = folder / "world" / "eval", folder / f"searched-{cell.value}", folder / f"sampled-{cell.value}"
    shared: dict[str, Any] = {"source": source, "model": start, "max_new_tokens": LONGEST, "batch_size": TREES, "seed": cell.seed}
    search_pairs(SearchOptions(**shared, value=cell.value, out=searched, iterations=4 if smoke else ITERATIONS))
    counts = {searched.name: read_search(searched)}
    samples = max(2, round(counts[searched.name]["tokens"] / mean_tokens(searched, start)))
    # The start's P(yes), as in the trees: asked for a word, it calls all of its sentences true.
    scorer = "truth" if cell.value == "truth" else "confidence"
    sample_pairs(SampleOptions(**shared, scorer=scorer, out=sampled, samples=samples, top_p=1.0))
    counts[sampled.name] = {**read_samples(sampled, start), "samples": samples}
    write_json(cell.path(out), counts)
    return ", ".join(f"{name} {one['tokens']:.0f} tokens per question, {one['pairs']:.0f} pairs" for name, one in counts.items())


def read_search(folder: Path) -> dict[str, float]:
    """Tokens that trees drew per question, and the pairs; one answer for each question came of it."""
    drawn = {line["index"]: line["tokens"] for line in _lines(folder)}
    return {"tokens": sum(drawn.values()) / len(drawn), "pairs": len(load_rows(folder / "pairs")), "samples": 1}


def mean_tokens(folder: Path, model: str) -> float:
    """Tokens of the answers that a search settled on, with the end of turn."""
    return _mean_length({line["index"]: [line["answer"]] for line in _lines(folder)}, model)


def read_samples(folder: Path, model: str) -> dict[str, float]:
    """Tokens of the samples per question, and the pairs."""
    responses = {line["index"]: line["responses"] for line in _lines(folder)}
    mean = sum(map(len, responses.values())) / len(responses) * _mean_length(responses, model)
    return {"tokens": mean, "pairs": len(load_rows(folder / "pairs"))}


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(sorted((folder / "chunks").glob("*.jsonl"))) if "reason" not in line]


def _mean_length(texts: dict[int, list[str]], model: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) + 1 for own in texts.values() for text in own]
    return sum(lengths) / len(lengths)


def run_cell(cell: Cell, out: Path, *, steps: int) -> str:
    """Train, measure, and keep the numbers and the log; the weights are deleted."""
    arm, searching = cell.arm, bool(cell.beta)
    beta, rate = (cell.beta, cell.learning_rate) if searching else best_of(arm, out)
    data = DataCell(arm.value, cell.seed)
    model = out / "models" / "-".join(map(slug, (arm.name, str(cell.seed), beta, rate)))
    shutil.rmtree(model, ignore_errors=True)
    run(["train", "preference", "--model", out / "start" / "sft", "--data", data.folder(out) / arm.data / "pairs", "--out", model,
         "--objective", arm.objective, "--beta", beta, "--reference", "copy", "--batch-size", BATCH, "--max-steps", steps,
         "--learning-rate", rate, "--warmup-ratio", 0.1, "--logging-steps", max(1, steps // 15), "--seed", cell.seed])  # fmt: skip
    metrics = measure(model, out / "start" / ("validation" if searching else "test"), parts=PARTS[:1] if searching else PARTS)
    metrics |= {**read_json(data.path(out))[arm.data], "beta": float(beta), "learning rate": float(rate)}
    write_run(cell.path(out), metrics, model=model)
    shutil.rmtree(model)
    return f"object F1 {object_f1(metrics):.1f}"


def run_study(options: argparse.Namespace) -> None:
    """Make the start; search beta and learning rate; compare."""
    measure_start(make_start(options.out / "start", smoke=options.smoke), options.out, parts=PARTS)
    form = {"quick": options.quick, "smoke": options.smoke}
    make = partial(make_data, out=options.out, scenes=count_scenes(**form), smoke=options.smoke)
    for cells in (list_searches(**form), list_cells(**form)):
        missing = [cell for cell in cells if not cell.path(options.out).is_file()]
        # Both values of a seed share its world.
        sets = dict.fromkeys(DataCell(cell.arm.value, cell.seed) for cell in missing)
        run_missing(sets, make, options, together=lambda one: one.seed)
        run_missing(missing, partial(run_cell, out=options.out, steps=count_steps(**form)), options)


if __name__ == "__main__":
    main(__doc__, name="search_pairs", quick="one seed, fewer steps, fewer scenes", run=run_study, write_page=write_page)

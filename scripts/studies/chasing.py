"""Do two adapters that chase each other forget less? OFS-DPO and COFS-DPO against DPO on two domains in turn, on the embedded world.

    python -m scripts.studies.chasing --processes 2           # everything
    python -m scripts.studies.chasing --processes 2 --quick   # one seed, fewer steps

The domains are the world's pairs about captions and its pairs about yes-or-no questions. A model learns the one, then the other, in both
orders: by DPO, by a fast and a slow adapter that chase each other, or by the sum of the domains' leading adapters; one learns both at
once. What was forgotten is read from DPO's loss on held-out pairs of the first domain. ``--report docs/studies`` writes the published page.
"""

import argparse
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.data.caches import LOGPS
from mmalign.difficulty.fuse import CACHED
from scripts.studies.chasing_grid import DOMAINS, Cell, Domain, count_steps, list_cells, list_rounds
from scripts.studies.chasing_page import write_page
from scripts.studies.study import StartCell, main, run_missing, write_dataset, write_json, write_run
from scripts.studies.world import BATCH, NUM_PAIRS, load_copy, make_held_out, make_sft, measure, run

PARTS = ("chair", "pope")
BETA, LEARNING_RATE, RANK = 0.3, 1e-3, 16
EASY_SHARE = 0.2
QUESTION_KINDS = ("wrong-yes", "wrong-no")
# One pair in five is about a question.
SCENES_PER_PAIR = 6
HELD_OUT_SEED, NUM_HELD_OUT = 9_002, 150


def make_domains(folder: Path, seed: int, *, number: int) -> None:
    """Make a world's pairs, and so many of each domain in a file of its own and in one of both, where they are missing."""
    if not (folder / "world" / "world.json").is_file():
        run(["world", "build", "--out", folder / "world", "--seed", seed, "--num-scenes", 1, "--num-eval-scenes", 1, "--num-workers", 1,
             "--num-pairs", SCENES_PER_PAIR * number, "--easy-share", EASY_SHARE])  # fmt: skip
    pairs = load_copy(folder / "world" / "pairs" / "train.parquet")
    is_question = np.isin(pairs["truth_kind"], QUESTION_KINDS)
    places = {"captions": np.flatnonzero(~is_question)[:number], "questions": np.flatnonzero(is_question)[:number]}
    places["joint"] = np.sort(np.concatenate([places[domain] for domain in DOMAINS]))
    for name, chosen in places.items():
        if not (folder / f"{name}.parquet").is_file():
            write_dataset(folder / f"{name}.parquet", pairs.select(chosen))


def rows_folder(seed: int, out: Path) -> Path:
    """The folder of a seed's files, one for each domain."""
    return out / "rows" / str(seed)


def start_folder(seed: int, out: Path) -> Path:
    """The folder of a seed's start."""
    return out / "starts" / str(seed)


def run_start(cell: StartCell, out: Path, *, smoke: bool) -> str:
    """Make a seed's start and rows, and measure the start."""
    start = make_sft(start_folder(cell.seed, out), smoke=smoke, seed=cell.seed)
    make_domains(rows_folder(cell.seed, out), cell.seed, number=24 if smoke else NUM_PAIRS)
    metrics = measure_all(start, start, out)
    write_json(cell.path(out), metrics)
    return f"{metrics['hallucinated']:.1f}% hallucinated captions"


def run_cell(cell: Cell, out: Path, *, steps: int) -> str:
    """Train or combine, merge, and measure; models remain, as others are made from them."""
    adapter, whole_model = (out / kind / str(cell.seed) / cell.name for kind in ("adapters", "models"))
    start = start_folder(cell.seed, out) / "sft"
    shutil.rmtree(whole_model, ignore_errors=True)
    if cell.how == "cofs":
        combine(cell, adapter, out)
    else:
        train(cell, adapter, out, steps=steps)
    run(["merge", adapter, "--out", whole_model])
    metrics = measure_all(whole_model, start, out)
    if cell.how == "cofs":
        write_json(cell.path(out), metrics)
    else:
        write_run(cell.path(out), metrics, model=adapter)
    return ", ".join(f"loss on {domain} {metrics[f'loss {domain}']:.3f}" for domain in DOMAINS)


def train(cell: Cell, adapter: Path, out: Path, *, steps: int) -> None:
    """Train an adapter, or two, on the last domain: on the model that those before left, or on the start."""
    joint = cell.how == "joint"
    before = cell.domains[:-1] if not joint else ()
    base = out / "models" / str(cell.seed) / Cell(cell.how, before, cell.seed).name if before else start_folder(cell.seed, out) / "sft"
    rows = rows_folder(cell.seed, out) / f"{'joint' if joint else cell.domains[-1]}.parquet"
    chasing = ["--chasing"] if cell.how == "ofs" else []
    run(["train", "preference", "--model", base, "--data", rows, "--out", adapter, "--lora-rank", RANK, "--beta", BETA,
         "--learning-rate", LEARNING_RATE, "--batch-size", BATCH, "--max-steps", steps * (2 if joint else 1), "--warmup-ratio", 0.1,
         "--logging-steps", max(1, steps // 15), "--seed", cell.seed, *chasing])  # fmt: skip


def combine(cell: Cell, adapter: Path, out: Path) -> None:
    """Sum the leading adapters of the domains, which are of the start."""
    shutil.rmtree(adapter, ignore_errors=True)
    leading = [out / "adapters" / str(cell.seed) / Cell("ofs", (domain,), cell.seed).name for domain in cell.domains]
    data = [rows_folder(cell.seed, out) / f"{domain}.parquet" for domain in cell.domains]
    run(["combine-adapters", *leading, "--data", *data, "--out", adapter, "--beta", BETA, "--max-pairs", 64])


def measure_all(model: Path, start: Path, out: Path) -> dict[str, float]:
    """Measure what a model says, and DPO's loss on the held-out pairs of each domain."""
    metrics = measure(model, out / "test", parts=PARTS)
    return metrics | {f"loss {domain}": pair_loss(*(read_logps(one, domain, out) for one in (model, start))) for domain in DOMAINS}


def read_logps(model: Path, domain: Domain, out: Path) -> Mapping[str, Any]:
    """Return the held-out pairs of a domain with the model's log-probabilities, computed where they are missing."""
    folder = model / "logps" / domain
    if not (folder / CACHED).is_file():
        run(["cache-logps", out / "held-out" / f"{domain}.parquet", "--model", model, "--out", folder, "--batch-size", 50])
    found: Mapping[str, Any] = load_copy(folder / CACHED)
    return found


def pair_loss(policy: Mapping[str, Any], start: Mapping[str, Any]) -> float:
    """Mean of DPO's loss on the same pairs, whose reference is the start."""
    chosen, rejected = (np.asarray(policy[name]) - np.asarray(start[name]) for name in LOGPS)
    return float(np.logaddexp(0, -BETA * (chosen - rejected)).mean())


def run_study(options: argparse.Namespace) -> None:
    """Make the worlds, then all models of a seed in one process, seed by seed."""
    make_held_out(options.out, smoke=options.smoke)
    make_domains(options.out / "held-out", HELD_OUT_SEED, number=12 if options.smoke else NUM_HELD_OUT)
    steps = count_steps(quick=options.quick, smoke=options.smoke)
    for seeds in list_rounds(quick=options.quick, smoke=options.smoke):
        run_missing([StartCell(seed) for seed in seeds], partial(run_start, out=options.out, smoke=options.smoke), options)
        cells = [cell for seed in seeds for cell in list_cells(seed)]
        run_missing(cells, partial(run_cell, out=options.out, steps=steps), options, together=lambda cell: cell.seed)


if __name__ == "__main__":
    main(__doc__, name="chasing", quick="one seed, fewer steps", run=run_study, write_page=write_page)

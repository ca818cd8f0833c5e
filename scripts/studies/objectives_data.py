"""The objectives study's data: pairs with scores, and lists of responses that the start samples, each with its reference."""

import os
from pathlib import Path

import numpy as np
from datasets import Dataset

from data_tools.response_scores import best_and_worst
from data_tools.sample_pairs import SampleOptions
from data_tools.sample_pairs import run as sample_pairs
from mmalign.evaluation.chair import load_chair
from scripts.schedules.stages import pair_row, read_lists, write_rows
from scripts.studies.objectives_grid import Condition
from scripts.studies.world_start import make_scored_pairs, run, slug

NUM_PAIRS, NUM_PROMPTS, SAMPLES = 2400, 3000, 4
VISITS = 16


def make_data(condition: Condition, seed: int, out: Path, *, smoke: bool) -> dict[str, Path]:
    """Return the files of a data set by the method that reads them, made where they are missing."""
    if not condition.lists:
        return {"preference": make_pairs(condition, seed, out, smoke=smoke)}
    lists, ends = make_lists(condition, seed, out, smoke=smoke)
    return {"listwise": lists, "preference": ends}


def make_pairs(condition: Condition, seed: int, out: Path, *, smoke: bool) -> Path:
    """Return the pairs of a data set with reference, scores and visits."""
    folder = out / "pairs" / f"{slug(condition.name)}-{seed}"
    scored = make_scored_pairs(
        folder, start=out / "start", seed=seed, num_pairs=48 if smoke else NUM_PAIRS,
        easy_share=condition.easy_share, label_noise=condition.label_noise,
    )  # fmt: skip
    path = folder / "with_scores.parquet"
    if not path.is_file():
        rows = Dataset.from_parquet(str(scored), cache_dir=str(folder / f"cache-{os.getpid()}"))
        gap = np.asarray(rows["gap_contrastive"])
        # In units of a reward model's logits: two standard deviations are a gap of 4.
        gap = 2 * gap / max(float(gap.std()), 1e-9)
        visits = VISITS / (1 + np.exp(-gap))
        columns = {"score_chosen": gap, "score_rejected": np.zeros_like(gap), "visits_chosen": visits, "visits_rejected": VISITS - visits}
        for name, values in columns.items():
            rows = rows.add_column(name, values.tolist())
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        rows.to_parquet(str(partial))
        partial.rename(path)
    return path


def make_lists(condition: Condition, seed: int, out: Path, *, smoke: bool) -> tuple[Path, Path]:
    """Return lists of responses that the start samples to new scenes, and the best against the worst of each, both with reference.

    The truth scores them: (objects named and there - objects named and absent) / objects there, brought to [0, 1]. Label noise
    turns the order of that share of the lists round. Prompts whose responses are equally good are left out.
    """
    folder = out / "lists" / f"{slug(condition.name)}-{seed}"
    files = (folder / "lists" / "cached.parquet", folder / "ends" / "cached.parquet")
    if all(path.is_file() for path in files):
        return files
    # A seed's samples are the same, whatever noise comes over their scores.
    world, sampled = (out / "lists" / f"{name}-{seed}" for name in ("world", "sampled"))
    if not (world / "world.json").is_file():
        run(["world", "build", "--out", world, "--seed", seed, "--num-scenes", 1, "--num-pairs", 1, "--num-workers", 1,
             "--num-eval-scenes", 48 if smoke else NUM_PROMPTS])  # fmt: skip
    start = out / "start" / "sft"
    sample_pairs(
        SampleOptions(
            source=world / "eval", model=str(start), scorer="truth", out=sampled, samples=SAMPLES, max_new_tokens=64, batch_size=100,
            seed=seed,
        )
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    lists, ends = [], []
    for row in read_lists(sampled, load_chair(world / "eval").questions(), image_root=world / "eval" / "images", suffix=str(seed)):
        scores = np.clip((np.asarray(row["scores"]) + 1) / 2, 0, 1)
        scores = scores.max() + scores.min() - scores if rng.random() < condition.label_noise else scores
        pair = best_and_worst(row["responses"], scores.tolist())
        if pair is not None:
            lists.append({**row, "scores": scores.tolist()})
            ends.append(pair_row(row, *pair, (float(scores.max()), float(scores.min())), name=row["id"]))
    for path, rows in zip(files, (lists, ends), strict=True):
        write_rows(path.parent.with_suffix(".parquet"), rows, image_root=None)
        run(["cache-logps", path.parent.with_suffix(".parquet"), "--model", start, "--out", path.parent, "--batch-size", 64])
    return files

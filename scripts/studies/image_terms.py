"""Does a term over images make the answer depend on the image? Objectives that compare images against DPO, on the embedded world.

    python -m scripts.studies.image_terms --processes 2           # everything
    python -m scripts.studies.image_terms --processes 2 --quick   # one seed, fewer steps, contrast rows alone

A seed makes a start of its own (world, vision tower, SFT), draws the rows and orders the batches; all arms of a seed see the same rows in
the same order. First each arm searches beta and learning rate on rows of a seed of their own. Then it trains on contrast rows, which have a
second image; arms that need none train on ordinary pairs too, with what was found. How much an answer depends on the image is read from its
log-probability given the own image, the other one and a weakened one. ``--report docs/studies`` writes the published page.
"""

import argparse
import io
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from mmalign.data.images import load_image
from mmalign.data.weaken import weaken
from mmalign.difficulty.fuse import CACHED
from mmalign.files import read_json, whole
from scripts.studies.image_terms_grid import (
    SEARCH_SEED,
    SFT,
    Cell,
    StartCell,
    best_of,
    count_steps,
    list_rounds,
    list_searches,
    search_score,
)
from scripts.studies.image_terms_page import write_page
from scripts.studies.image_worth import MEASURED, by_asked, image_metrics
from scripts.studies.study import main, run_missing, slug, write_dataset, write_json, write_run
from scripts.studies.world import BATCH, NUM_PAIRS, load_copy, make_held_out, make_sft, measure, run

PARTS = ("chair", "pope", "mmvp")
GREY = "grey"


def start_folder(seed: int, out: Path) -> Path:
    """The folder of a seed's start; the search trains from that of the first."""
    return out / "starts" / str(1 if seed == SEARCH_SEED else seed)


def make_rows(seed: int, out: Path, *, smoke: bool) -> None:
    """Make a seed's contrast rows and pairs, and the same with grey pictures, where they are missing."""
    folder = out / "rows" / str(seed)
    if not (folder / "world.json").is_file():
        number = 48 if smoke else NUM_PAIRS
        run(["world", "build", "--out", folder, "--seed", seed, "--num-scenes", 1, "--num-eval-scenes", 1, "--num-workers", 1,
             "--num-pairs", number, "--num-contrast", number])  # fmt: skip
    for rows in ("contrast", "pairs"):
        file = folder / GREY / f"{rows}.parquet"
        if not file.is_file():
            write_grey(folder / rows / "train.parquet", file)


def write_grey(source: Path, path: Path) -> None:
    """Write rows whose own images are grey and as large as they were."""
    rows = Dataset.from_parquet(str(source), cache_dir=str(path.parent / "cache"))
    features = rows.features
    grey = rows.map(lambda row: {"images": [{"bytes": grey_png(image), "path": None} for image in row["images"]]}, features=features)
    write_dataset(path, grey)


def grey_png(image: Any) -> bytes:
    """A grey picture as large as an image."""
    file = io.BytesIO()
    weaken(load_image(image), "blank", np.random.default_rng()).save(file, "PNG")
    return file.getvalue()


def make_grey_test(out: Path) -> Path:
    """Return the test scenes' questions on grey pictures, made where they are missing."""
    folder = out / f"test-{GREY}"
    if not folder.is_dir():
        with whole(folder) as partial_folder:
            shutil.copytree(out / "test" / "eval", partial_folder / "eval")
            for path in partial_folder.rglob("*.png"):
                path.write_bytes(grey_png(path.read_bytes()))
    return folder


def rows_file(cell: Cell, out: Path) -> Path:
    """The rows that a run trains on."""
    folder = out / "rows" / str(cell.seed)
    return folder / GREY / f"{cell.rows}.parquet" if cell.arm.blind else folder / cell.rows / "train.parquet"


def run_start(cell: StartCell, out: Path, *, smoke: bool) -> str:
    """Make a seed's start and rows, and measure the start: as it is, and on grey pictures."""
    start = make_sft(start_folder(cell.seed, out), smoke=smoke, seed=cell.seed)
    make_rows(cell.seed, out, smoke=smoke)
    logps = read_logps(start, out)
    blind = measure(start, make_grey_test(out), parts=PARTS)
    write_json(cell.path(out).with_stem(f"{SFT}-{GREY}"), blind)
    metrics = measure(start, out / "test", parts=PARTS) | own_minus_other(logps, logps)
    write_json(cell.path(out), metrics)
    return f"{metrics['hallucinated']:.1f}% hallucinated captions"


def run_cell(cell: Cell, out: Path, *, steps: int, smoke: bool) -> str:
    """Train, measure, and keep the numbers and the log; the weights are deleted."""
    arm, searching = cell.arm, bool(cell.beta)
    beta, rate = (cell.beta, cell.learning_rate) if searching else best_of(arm, out)
    start = start_folder(cell.seed, out) / "sft"
    model = out / "models" / "-".join(map(slug, (arm.name, cell.rows, str(cell.seed), beta, rate)))
    shutil.rmtree(model, ignore_errors=True)
    run(["train", "preference", "--model", start, "--data", rows_file(cell, out), "--out", model, "--objective", arm.objective,
         "--beta", beta, "--weaken", arm.weaken, "--reference", "copy", "--batch-size", BATCH, "--max-steps", steps,
         "--learning-rate", rate, "--warmup-ratio", 0.1, "--logging-steps", max(1, steps // 15), "--seed", cell.seed])  # fmt: skip
    if searching:
        metrics = measure(model, out / "validation", parts=("chair", "mmvp"))
        said = f"score {search_score(metrics):.1f}"
    else:
        metrics = measure(model, out / "test", parts=PARTS) | own_minus_other(read_logps(model, out), read_logps(start, out))
        metrics["told apart"] = told_apart(read_json(model / "train_log.json"))
        said = f"{metrics['own - other']:.1f} nats from the image"
    write_run(cell.path(out), metrics | {"beta": float(beta), "learning rate": float(rate)}, model=model)
    shutil.rmtree(model)
    return said


def told_apart(log: Sequence[Mapping[str, float]]) -> float:
    """Return on what share of the training rows the chosen answer's reward was above the rejected one's, in the last third; in percent."""
    shares = [entry["rewards/accuracy"] for entry in log if "rewards/accuracy" in entry]
    last = shares[-max(1, len(shares) // 3) :]
    return 100 * sum(last) / len(last)


def read_logps(model: Path, out: Path) -> Dataset:
    """Return the held-out contrast rows with the model's log-probabilities, computed where they are missing."""
    folder = model / "logps"
    if not (folder / CACHED).is_file():
        run(["cache-logps", out / "test" / "eval" / "contrast" / "pairs.parquet", "--model", model, "--out", folder,
             "--objective", *MEASURED, "--batch-size", 50])  # fmt: skip
    return load_copy(folder / CACHED)


def own_minus_other(policy: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, float]:
    """``image_metrics`` of the held-out contrast rows: by what is asked, and where a usual companion is absent from one image."""
    groups = by_asked(policy) | {"likely": np.asarray(policy["contrast_likely"], dtype=bool)}
    return image_metrics(policy, start, groups=groups)


def run_study(options: argparse.Namespace) -> None:
    """Make the first start; search; compare, seed by seed."""
    form = {"quick": options.quick, "smoke": options.smoke}
    make_held_out(options.out, smoke=options.smoke, contrast=True)
    work = partial(run_cell, out=options.out, steps=count_steps(**form), smoke=options.smoke)
    searches = list_searches(**form)
    for number, cells in enumerate(list_rounds(**form)):
        make_grey_test(options.out)
        starts = dict.fromkeys(StartCell(cell.seed) for cell in cells)
        run_missing(starts, partial(run_start, out=options.out, smoke=options.smoke), options)
        if number == 0:
            make_rows(SEARCH_SEED, options.out, smoke=options.smoke)
            run_missing(searches, work, options)
        run_missing(cells, work, options)


if __name__ == "__main__":
    main(__doc__, name="image_terms", quick="one seed, fewer steps, contrast rows alone", run=run_study, write_page=write_page)

"""Which preference objective? All of them from one start on the embedded world, each with the same search, over seeds.

    python -m scripts.studies.objectives --processes 2           # everything
    python -m scripts.studies.objectives --processes 2 --quick   # six, about 16 minutes on two cores
    python -m scripts.studies.objectives --processes 2 --starts sft,none,instruct --num-pairs 300,1000,3000   # by start and size instead

First each objective searches its strength and its learning rate on data of a seed of their own, by the object F1 of captions of the
validation scenes: the harmonic mean of precision (100 - CHAIR_i) and coverage, which silence does not raise. Then it trains with the
best: those of pairs on clean and 20% flipped labels, on easy-skewed and balanced pairs; those of lists on responses that the start
samples and the truth scores. ``--report docs/studies`` writes the published page.

Scores for the objectives of pairs that read them (madpo, dno, smpo, adpo_pair; visits of step_dpo) come from the CLIP scorer's gap,
which doesn't know which labels were flipped.

``--starts`` and ``--num-pairs`` ask something else, of five objectives (``objectives_axes.py``): what changes with the model that one
starts from, and with the number of pairs. Its page is ``objectives_axes.md``.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_tools.sample_options import SampleOptions
from data_tools.sample_pairs import run as sample_pairs
from data_tools.sampled_lists import read_lists
from data_tools.scoring import best_and_worst
from mmalign.evaluation.chair import load_chair
from schedules.stages import pair_row, write_rows
from scripts.studies.objectives_axes import add_options, list_axes, list_axis_searches, make_starts, run_axis_cell
from scripts.studies.objectives_axes_page import write_axes_page
from scripts.studies.objectives_grid import Cell, Data, best_of, count_steps, list_cells, list_searches
from scripts.studies.objectives_page import write_page
from scripts.studies.objectives_train import Training, train_and_measure
from scripts.studies.study import main, run_missing, write_dataset, write_json
from scripts.studies.world import load_copy, make_scored_pairs, make_start, measure_start, object_f1, run

NUM_PROMPTS, SAMPLES, VISITS = 3000, 4, 16


def run_cell(cell: Cell, out: Path, *, steps: int, smoke: bool) -> str:
    """Train, measure, and keep the numbers."""
    searching = bool(cell.value)
    value, rate = (cell.value, cell.learning_rate) if searching else best_of(cell, out)
    data = make_data(cell.data, cell.seed, out, smoke=smoke)[cell.objective.method]
    training = Training(cell.objective, value, rate, cell.seed, out / "start" / "sft", data)
    world = out / "start" / ("validation" if searching else "test")
    metrics = train_and_measure(training, out, world, steps=steps, parts=("chair",) if searching else ("chair", "pope"))
    write_json(cell.path(out), metrics)
    return f"object F1 {object_f1(metrics):.1f}"


def make_data(data: Data, seed: int, out: Path, *, smoke: bool) -> dict[str, Path]:
    """Return the files of a data set by the method that reads them, made where they are missing."""
    if not data.lists:
        return {"preference": make_pairs_with_scores(data, seed, out, smoke=smoke)}
    lists, ends = make_lists(data, seed, out, smoke=smoke)
    return {"listwise": lists, "preference": ends}


def make_pairs_with_scores(data: Data, seed: int, out: Path, *, smoke: bool) -> Path:
    """Return the pairs of a data set with reference, scores and visits."""
    path = data.file(seed, out)
    if not path.is_file():
        rows = load_copy(make_scored_pairs(out, data, seed, smoke=smoke))
        gap = np.asarray(rows["gap_contrastive"])
        # In units of a reward model's logits: two standard deviations are a gap of 4.
        gap = 2 * gap / max(float(gap.std()), 1e-9)
        visits = VISITS / (1 + np.exp(-gap))
        columns = {"score_chosen": gap, "score_rejected": np.zeros_like(gap), "visits_chosen": visits, "visits_rejected": VISITS - visits}
        for name, values in columns.items():
            rows = rows.add_column(name, values.tolist())
        write_dataset(path, rows)
    return path


def make_lists(data: Data, seed: int, out: Path, *, smoke: bool) -> tuple[Path, Path]:
    """Return lists of responses that the start samples to new scenes, and the best against the worst of each, both with reference.

    The truth scores them: (objects named and there - objects named and absent) / objects there, brought to [0, 1]. Label noise
    turns the order of that share of the lists round. Prompts whose responses are equally good are left out.
    """
    ends_file = data.file(seed, out)
    files = (ends_file.parents[1] / "lists" / "cached.parquet", ends_file)
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
        scores = scores.max() + scores.min() - scores if rng.random() < data.label_noise else scores
        pair = best_and_worst(row["responses"], scores.tolist())
        if pair is not None:
            lists.append({**row, "scores": scores.tolist()})
            ends.append(pair_row(row, *pair, name=row["id"]))
    for path, rows in zip(files, (lists, ends), strict=True):
        write_rows(path.parent.with_suffix(".parquet"), rows, image_root=None)
        run(["cache-logps", path.parent.with_suffix(".parquet"), "--model", start, "--out", path.parent, "--batch-size", 64])
    return files


@dataclass(frozen=True)
class DataCell:
    """The making of a data set, before the runs that share it."""

    data: Data
    seed: int

    def path(self, out: Path) -> Path:
        """Its file that is made last."""
        return self.data.file(self.seed, out)


def _make_data(cell: DataCell, out: Path, *, smoke: bool) -> str:
    return f"{len(make_data(cell.data, cell.seed, out, smoke=smoke))} files"


def run_searches_and_cells(searches: list[Cell], cells: list[Cell], options: argparse.Namespace) -> None:
    """Run what is missing: the searches, then the comparison; before each the data that its runs share."""
    steps = count_steps(quick=options.quick, smoke=options.smoke)
    for runs in (searches, cells):
        missing = [cell for cell in runs if not cell.path(options.out).is_file()]
        sets = dict.fromkeys(DataCell(cell.data, cell.seed) for cell in missing)
        # Lists of one seed share what is sampled.
        work = partial(_make_data, out=options.out, smoke=options.smoke)
        run_missing(sets, work, options, together=lambda one: (one.data.lists or one.data, one.seed))
        run_missing(missing, partial(run_cell, out=options.out, steps=steps, smoke=options.smoke), options)


def run_study(options: argparse.Namespace) -> None:
    """Make the start; search; compare."""
    measure_start(make_start(options.out / "start", smoke=options.smoke), options.out, parts=("chair", "pope"))
    form = {"quick": options.quick, "smoke": options.smoke}
    cells = list_axes(options.starts, options.num_pairs, **form)
    if not cells:
        run_searches_and_cells(list_searches(**form), list_cells(**form), options)
        return
    run_searches_and_cells(list_axis_searches(smoke=options.smoke), [], options)
    make_starts(cells, options.out, smoke=options.smoke)
    work = partial(run_axis_cell, out=options.out, steps=count_steps(**form), smoke=options.smoke)
    # A seed's pairs are made by the one process that reads them.
    run_missing(cells, work, options, together=lambda cell: cell.seed)


def write_pages(options: argparse.Namespace) -> Path:
    """Write the page of what was asked for."""
    return write_axes_page(options) if options.starts or options.num_pairs else write_page(options)


if __name__ == "__main__":
    quick = "six objectives of pairs, fewer steps, two seeds, easy-skewed pairs"
    main(__doc__, name="objectives", quick=quick, run=run_study, write_page=write_pages, add_options=add_options)

"""Which start, and how many pairs? The axes of "Insights into Alignment" (arXiv:2404.14723) for five objectives on the embedded world.

A part of the objectives study (``--starts``, ``--num-pairs``). Each objective trains for as many steps as there, with the strength and the
learning rate that its search found on the start ``sft``; few pairs are seen more often. The smaller sets of a seed are the first pairs of
the largest one. The starts are ours: ``none`` has seen 200 steps of SFT, just enough to speak; ``instruct`` is ``sft`` after more steps on
the chats alone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from mmalign.demo import commands
from scripts.studies.objectives_grid import PAIRS, QUICK_SEEDS, SMOKE, Cell, Objective, best_of, list_search
from scripts.studies.objectives_train import Training, train_and_measure
from scripts.studies.study import write_dataset, write_json
from scripts.studies.world import BATCH, CAPTION_NOISE, load_copy, make_pairs, measure, object_f1, run

STARTS = ("sft", "none", "instruct")
NAMES = ("dpo", "ipo", "kto_pair", "simpo", "cpo")
SEEDS, NUM_PAIRS = (*QUICK_SEEDS, 3), 3000
SFT_STEPS, INSTRUCT_STEPS = 200, 300
PARTS = ("chair", "pope", "general")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the axes."""
    parser.add_argument("--starts", type=_names, default=(), help="compare these instead: sft,none,instruct")
    parser.add_argument("--num-pairs", type=_sizes, default=(), help="with the first so many pairs, such as 300,1000,3000")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in STARTS]:
        raise argparse.ArgumentTypeError(f"there is no start {unknown[0]!r}; expected {', '.join(STARTS)}")
    return names


def _sizes(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() and BATCH <= int(part) <= NUM_PAIRS for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers of pairs; expected {BATCH} to {NUM_PAIRS} with commas, as 300,1000,3000")
    return tuple(map(int, text.split(",")))


@dataclass(frozen=True)
class AxisCell:
    """One run: an objective from a start, with a number of pairs."""

    objective: Objective
    seed: int
    start: str
    num_pairs: int

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        return out / "axes" / self.start / str(self.num_pairs) / str(self.seed) / f"{self.objective.name}.json"


def objectives(*, smoke: bool) -> list[Objective]:
    """The objectives of the axes, two of them in the smoke form."""
    return [one for one in PAIRS.grid if one.name in NAMES and (one.name in SMOKE or not smoke)]


def list_axis_searches(*, smoke: bool) -> list[Cell]:
    """List the runs of their searches, which are the study's; one of each in the smoke form."""
    return [cell for one in objectives(smoke=smoke) for cell in list_search(PAIRS, one)[: 1 if smoke else None]]


def list_axes(starts: Sequence[str], sizes: Sequence[int], *, quick: bool, smoke: bool) -> list[AxisCell]:
    """List the runs, none where no axis is asked for; an axis alone is that of the other's first value, ``sft`` or all pairs."""
    if not starts and not sizes:
        return []
    return [
        AxisCell(objective, seed, start, size)
        for seed in SEEDS[: 1 if quick or smoke else None]
        for start in starts or STARTS[:1]
        for size in sizes or (NUM_PAIRS,)
        for objective in objectives(smoke=smoke)
    ]


def start_folder(start: str, out: Path) -> Path:
    """Where a start's model is."""
    return out / "start" / "sft" if start == "sft" else out / "starts" / start


def make_starts(cells: Sequence[AxisCell], out: Path, *, smoke: bool) -> None:
    """Train the starts that cells ask for, where they are missing, and measure each."""
    for start in dict.fromkeys(cell.start for cell in cells):
        folder, measured = start_folder(start, out), out / "axes" / f"{start}.json"
        if not (folder / "train_log.json").is_file():
            run(_start_words(start, folder, out, smoke=smoke))
        if not measured.is_file():
            write_json(measured, measure(folder, out / "start" / "test", parts=PARTS))


def _start_words(start: str, folder: Path, out: Path, *, smoke: bool) -> list[str]:
    """The demo's SFT with other steps; of ``instruct`` also from another model, on other data."""
    steps = SFT_STEPS if start == "none" else INSTRUCT_STEPS
    words = commands(out / "start", seed=0, smoke=smoke, caption_noise=CAPTION_NOISE, sft_steps=steps)["sft/train_log.json"]
    changed = {"--out": folder}
    if start == "instruct":
        changed |= {"--model": out / "start" / "sft", "--data": _write_chats(out), "--learning-rate": "5e-4"}
    for option, value in changed.items():
        words[words.index(option) + 1] = str(value)
    return words


def _write_chats(out: Path) -> Path:
    """Keep the rows of the start's training data that are chats of several questions."""
    path = out / "starts" / "chats.parquet"
    rows = load_copy(out / "start" / "world" / "sft" / "train.parquet")
    write_dataset(path, rows.filter(lambda row: len(row["messages"]) > 2))
    return path


def make_axis_pairs(cell: AxisCell, out: Path, *, smoke: bool) -> Path:
    """Return the cell's pairs with its start's reference, made where they are missing."""
    folder = out / "pairs" / f"axes-{cell.seed}"
    cached, path = folder / cell.start / "cached.parquet", folder / cell.start / f"{cell.num_pairs}.parquet"
    if not cached.is_file():
        pairs = make_pairs(folder, PAIRS.data[0], cell.seed, smoke=smoke, num_pairs=NUM_PAIRS)
        run(["cache-logps", pairs, "--model", start_folder(cell.start, out), "--out", cached.parent, "--batch-size", 64])
    if not path.is_file():
        rows: Dataset = load_copy(cached)
        # Of 48 pairs the smoke form takes 4 where 300 are asked for.
        write_dataset(path, rows.select(range(max(1, len(rows) * cell.num_pairs // NUM_PAIRS) if smoke else cell.num_pairs)))
    return path


def run_axis_cell(cell: AxisCell, out: Path, *, steps: int, smoke: bool) -> str:
    """Train, measure, and keep the numbers."""
    value, rate = best_of(Cell(cell.objective, cell.seed, PAIRS.data[0]), out)
    data, start = make_axis_pairs(cell, out, smoke=smoke), start_folder(cell.start, out)
    training = Training(cell.objective, value, rate, cell.seed, start, data)
    metrics = train_and_measure(training, out, out / "start" / "test", steps=steps, parts=PARTS)
    write_json(cell.path(out), metrics)
    return f"object F1 {object_f1(metrics):.1f}"

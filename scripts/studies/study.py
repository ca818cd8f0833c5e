"""What every study shares: a file per finished run, processes that run what is missing, and the command line.

A study lists its runs as cells, the most important first. A cell knows its file; a cell whose file is there is not run again, so that a
stopped study resumes where it stopped. The page is written from the files alone (``page.py``). A study is one module that calls ``main``.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import torch
from datasets import Dataset, disable_progress_bars
from transformers.utils import logging

from mmalign.cli import main as mmalign
from mmalign.files import RUN_FILE, read_json, whole, write_whole
from scripts.studies.numbers import FOLDERS, take_numbers, write_numbers


class Cell(Protocol):
    """One run of a study."""

    def path(self, out: Path) -> Path:
        """The file that the finished run leaves in the study's folder."""


AnyCell = TypeVar("AnyCell", bound=Cell)
SFT = "sft"
"""The file of a start's numbers, beside those of the arms."""


@dataclass(frozen=True)
class StartCell:
    """A seed's start, and its own numbers."""

    seed: int

    def path(self, out: Path) -> Path:
        """The file of the start's numbers."""
        return out / "cells" / str(self.seed) / f"{SFT}.json"


class Named(Protocol):
    """An arm, by its name in tables."""

    @property
    def name(self) -> str:
        """Its name."""


AnyArm = TypeVar("AnyArm", bound=Named)


@dataclass(frozen=True)
class ArmCell(Generic[AnyArm]):
    """An arm and a seed."""

    arm: AnyArm
    seed: int

    @property
    def slug(self) -> str:
        """Name of its files beside those of other seeds."""
        return f"{slug(self.arm.name)}-{self.seed}"

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        return out / "cells" / str(self.seed) / f"{slug(self.arm.name)}.json"


@dataclass(frozen=True)
class SearchedCell(Generic[AnyArm]):
    """One run: of the search for beta and rate where it has them, else of the comparison with what that found."""

    arm: AnyArm
    seed: int
    beta: str = ""
    learning_rate: str = ""

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        if self.beta:
            return out / "search" / slug(self.arm.name) / f"{self.beta}_{self.learning_rate}.json"
        return out / "cells" / "arms" / str(self.seed) / f"{slug(self.arm.name)}.json"


def slug(name: str) -> str:
    """A name as a file's."""
    return re.sub(r"[^\w.]+", "-", name).lower()


def write_dataset(path: Path, rows: Dataset) -> None:
    """Write a Parquet file: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial_file:
        rows.to_parquet(partial_file)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write one finished cell: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(dict(values), indent=1) + "\n")


def read_sizes(model: Path) -> dict[str, int]:
    """Read from its record how many weights a trained model has, and how many of them a token activates."""
    counts = read_json(model / RUN_FILE)["parameters"]
    return {"weights": counts["total"], "activated": counts["activated"]}


def best_setting(scores: Mapping[tuple[str, str], float], name: str, out: Path) -> tuple[str, str]:
    """Return the strength and the learning rate that an arm's search found best; the first of equals in the order of its grid.

    Raises:
        ValueError: If the search has no finished run.
    """
    if not scores:
        raise ValueError(f"{name} has no finished run of the search in {out}; run the study without --report-only")
    return max(scores, key=lambda key: scores[key])


def write_run(path: Path, metrics: Mapping[str, float], *, model: Path) -> None:
    """Write a finished cell, and before it the log of the model's training beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model / "train_log.json", path.with_suffix(".log.json"))
    write_json(path, metrics)


def run_mmalign(words: Sequence[object], log: Path) -> None:
    """Run a command of mmalign in this process, its output at the end of a file.

    Raises:
        SystemExit: If it fails, with the last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = mmalign(list(map(str, words)))
    if code != 0:
        raise SystemExit(f"the study stopped at: mmalign {' '.join(map(str, words))}\n{log.read_text()[-2000:]}")


def quiet() -> None:
    """Leave the terminal to the study's own lines, and a core to each process: models this small are slower on two threads."""
    torch.set_num_threads(1)
    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def run_missing(
    cells: Iterable[AnyCell],
    work: Callable[[AnyCell], str],
    options: argparse.Namespace,
    *,
    together: Callable[[AnyCell], Hashable] | None = None,
) -> None:
    """Run the cells whose files are missing, in their order.

    Args:
        cells: The study's.
        work: Runs a cell, writes its file and returns what is printed of it: a function of a module, or a partial of one.
        options: Of ``main``: folder, processes, and the time after which no cell is started.
        together: Cells for which this is equal run one after the other in one process. All may run at once if not given.
    """
    groups: dict[Hashable, list[AnyCell]] = {}
    for number, cell in enumerate(cells):
        if not cell.path(options.out).is_file():
            groups.setdefault(number if together is None else together(cell), []).append(cell)
    run_over_processes(partial(_run_group, work, options.out, options.end), [(group,) for group in groups.values()], options.processes)


def _run_group(work: Callable[[AnyCell], str], out: Path, end: float, cells: Sequence[AnyCell]) -> None:
    quiet()
    for cell in cells:
        if time.time() < end:
            start = time.perf_counter()
            said = work(cell)
            print(f"{cell.path(out).relative_to(out).with_suffix('')}: {said} ({time.perf_counter() - start:.0f} s)", flush=True)


def run_over_processes(work: Callable[..., None], calls: Iterable[Sequence[Any]], processes: int) -> None:
    """Make calls in fresh processes, in their order, and wait for all.

    Args:
        work: A function of a module, or a partial of one.
        calls: The arguments of each.
        processes: Calls at once.

    Raises:
        Exception: What the first failed call raised, when those before it are done.
    """
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            for future in [pool.submit(work, *arguments) for arguments in calls]:
                future.result()
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:
    """End the processes too, which Ctrl-C in a terminal does and a SIGTERM doesn't: they would work on through the queue."""
    for child in multiprocessing.active_children():
        # Not terminate: a training answers that with a checkpoint, and its process then takes the next call.
        child.kill()
    raise SystemExit(128 + number)


def end_with_parent() -> None:
    """Let this process end soon after the one that started it, which a SIGKILL of that doesn't do."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(
    doc: str | None,
    *,
    name: str,
    quick: str,
    run: Callable[[argparse.Namespace], None],
    write_page: Callable[[argparse.Namespace], Path],
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    folders: Sequence[str] = FOLDERS,
) -> None:
    """Run what is not finished, then write the page and its numbers.

    Args:
        doc: Docstring of the study, its ``--help``.
        name: Of its folder under runs/studies and of its page.
        quick: What ``--quick`` leaves.
        run: Runs the cells.
        write_page: Writes the page into ``options.report`` and returns its path.
        add_options: Adds options of the study's own.
        folders: Hold the finished runs, in the study's folder.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/studies") / name, help="folder of the finished runs, kept from call to call")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--smoke", action="store_true", help="a few steps of a few runs: checks the path, shows no effect")
    parser.add_argument("--processes", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this")
    parser.add_argument("--report", type=Path, help=f"folder that {name}.md and its pictures are written to, such as docs/studies")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    parser.add_argument("--numbers", type=Path, help=f"take finished runs from this file, such as docs/studies/numbers/{name}.jsonl")
    add_options(parser)
    options = parser.parse_args()
    if options.numbers:
        print(f"{take_numbers(options.numbers, options.out)} finished runs taken from {options.numbers}")
    options.report = options.report or options.out
    quiet()
    if not options.report_only:
        start = time.time()
        options.end = start + 60 * options.minutes
        options.out.mkdir(parents=True, exist_ok=True)
        run(options)
        print(f"done in {time.time() - start:.0f} s")
    options.report.mkdir(parents=True, exist_ok=True)
    written = write_page(options)
    print(written)
    if options.report != options.out:
        write_numbers(options.out, options.report / "numbers" / f"{written.stem}{'-quick' if options.quick else ''}.jsonl", folders)

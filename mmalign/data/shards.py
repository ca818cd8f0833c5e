"""Work on many rows that may be stopped at any time and split among processes: done in shards, files that are there whole or not at all.

A shard always holds the same rows and its bytes depend on nothing outside it, so that a run which was stopped or split ends with the same
files as one that was not. Processes take every N-th shard, and need not talk to each other.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from tqdm import tqdm

from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.files import whole

Item = TypeVar("Item")
SHARD_SIZE = 512
WINDOW_BATCHES = 8
"""Batches whose rows are sorted by length together: their decoded images are held at once."""
# One process may have the longest texts; the others wait for it at the end and at no other time.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Share:
    """Part ``index`` of ``count``, from 0; the whole is part 0 of 1."""

    index: int = 0
    count: int = 1

    @property
    def suffix(self) -> str:
        """Of the names of files that each part writes for itself."""
        return "" if self.count == 1 else f"-{self.index + 1}-of-{self.count}"

    def take(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this part of the items: one in ``count``."""
        return items[self.index :: self.count]


def parse_share(text: str) -> Share:
    """Read ``i/N``, i from 1.

    Raises:
        ValueError: If it is not a part of a whole.
    """
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UserError(f"shard is {text!r}; expected i/N with i from 1 to N, such as 1/8 on the first of eight machines")
    return Share(int(first) - 1, int(second))


def split_among_processes(share: Share) -> Share:
    """Split a part among the processes that ``accelerate launch`` or ``torchrun`` started; each gets its own accelerator."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return share
    # Without cpu=True, accelerate takes launched processes on a machine without accelerators for lone ones.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    return Share(share.index * state.num_processes + state.process_index, share.count * state.num_processes)


def wait_for_all() -> bool:
    """Wait until each launched process is here.

    Returns:
        Whether this is the one that goes on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    state = PartialState()
    state.wait_for_everyone()
    return state.is_main_process


Advance = Callable[[int], object]
"""Called with a number of rows that are done."""


@dataclass(frozen=True)
class Shards:
    """Files of ``size`` rows each, the last one perhaps of fewer, named by their first row."""

    folder: Path
    num_rows: int
    size: int
    suffix: str = ".jsonl"

    def paths(self) -> list[Path]:
        """List the files in the rows' order, whether they are there or not."""
        return [self.folder / f"{start:09d}{self.suffix}" for start in range(0, self.num_rows, self.size)]

    def rows(self, path: Path) -> range:
        """Return the rows of a file."""
        return range(int(path.stem), min(int(path.stem) + self.size, self.num_rows))

    def finish(
        self,
        write: Callable[[range, Path, Advance], None],
        *,
        label: str,
        keep: Callable[[Path], bool] = lambda path: True,
        share: Share = Share(),
        unit: str = "row",
    ) -> Iterator[Path]:
        """Write the files that are missing, or no longer good.

        Args:
            write: Does the work of a range of rows and writes the file at the path given; it may tell the progress inside.
            label: Name of the progress bar.
            keep: Tells whether a file that is there is still good, or is to be written anew; it may refuse one as well.
            share: The part of the files that is this process's.
            unit: What a row is called.

        Yields:
            Each file of the share once it is there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = share.take(self.paths())
        num_rows = sum(len(self.rows(path)) for path in paths)
        with tqdm(total=num_rows, desc=label, unit=unit, leave=False, disable=share.index > 0) as bar:
            done = 0
            for path in paths:
                if not (path.is_file() and keep(path)):
                    with whole(path) as partial:
                        write(self.rows(path), partial, bar.update)
                done += len(self.rows(path))
                bar.update(done - bar.n)
                yield path

    def reject_broken(self, done: Iterable[Path], read: Callable[[Path], Iterable[tuple[str, str]]], rejects: Rejects) -> None:
        """Collect the broken rows of each file as soon as it is there, and stop when they are too many.

        Args:
            done: From ``finish``.
            read: Reads id and reason of the broken rows of a file.
            rejects: Where they go.

        Raises:
            ValueError: If too many rows are broken.
        """
        num_seen = 0
        for path in done:
            num_seen += len(self.rows(path))
            for name, reason in read(path):
                rejects.add(name, reason)
            rejects.check(num_seen)
        rejects.check(num_seen, final=True)


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines), encoding="utf-8")


def read_lines(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of several files."""
    for path in paths:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

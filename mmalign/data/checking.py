"""Rows are checked one by one before any is used: by all processes of a run, each with workers of its own.

The good rows and the rejects file are the same whatever the number of either.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmalign.data.images import FileState, noted_files
from mmalign.data.rejects import Rejects
from mmalign.data.shards import Share
from mmalign.data.verdicts import KeptVerdicts, Verdict
from mmalign.data.workers import can_fork, count_cores, lost_workers
from mmalign.errors import UserError

Check = Callable[..., None]
"""Called as ``check(row, index=...)``; raises UserError with the reason."""

BATCH = 128
"""Rows that a process checks before it tells the others."""


def keep_good_rows(dataset: Dataset, check: Check, *, rejects: Rejects, num_workers: int = 0, kept: KeptVerdicts | None = None) -> Dataset:
    """Check every row and select the good ones; the others go to the rejects file.

    Where processes have found each other, each checks its share of the rows and all learn of all.

    Args:
        dataset: Rows as ``load_rows`` gives them.
        check: Of one row.
        rejects: Where broken rows go.
        num_workers: Processes of each process that check; 0: it checks itself.
        kept: Verdicts that may be there already, and are kept otherwise; None checks in any case.

    Raises:
        UserError: If too many rows are broken, or all are.
        ChildProcessError: If a worker died.
    """
    share = _process_share()
    held = None if kept is None else _read_kept(kept, share)
    if held is not None:
        broken = _reject(held, len(dataset), rejects)
        if share.index == 0:
            print(f"skipping the check of {len(dataset):,} rows: these data and images were checked for this processor before")
    else:
        files: dict[str, FileState] = {}
        with tqdm(total=len(dataset), desc="checking rows", unit="row", leave=False, disable=share.index > 0) as bar:
            broken = _reject(_check_together(dataset, check, share, num_workers, bar, files), len(dataset), rejects)
        if kept is not None and share.index == 0:
            kept.write(broken, files)
    bad = {verdict.row for verdict in broken}
    return dataset if not bad else dataset.select([i for i in range(len(dataset)) if i not in bad])


def _read_kept(kept: KeptVerdicts, share: Share) -> list[Verdict] | None:
    """Read what the first process finds: the others may have other disks."""
    found = [kept.read() if share.index == 0 else None]
    if share.count > 1:
        dist.broadcast_object_list(found)
    return found[0]


def _reject(verdicts: Iterable[Verdict], num_rows: int, rejects: Rejects) -> list[Verdict]:
    """List the broken rows among the verdicts, in the rows' order, and stop as soon as they are too many.

    Raises:
        UserError: If too many rows are broken, or all are.
    """
    broken = []
    for verdict in verdicts:
        if verdict.reason is not None:
            rejects.add(verdict.id, verdict.reason)
            rejects.check(verdict.row + 1)
            broken.append(verdict)
    rejects.check(num_rows, final=True)
    if len(broken) == num_rows:
        raise UserError(f"no row of {num_rows} can be used; the reasons are in {rejects.path}. The first is {rejects.first}")
    return broken


def choose_workers(asked: int | None, num_rows: int) -> int:
    """Choose how many processes check for this one: those asked for, or one for each of its cores where there is work for them."""
    if asked is not None:
        return asked if can_fork() else 0
    batches = math.ceil(num_rows / _process_share().count / BATCH)
    count = min(count_cores(), batches // 2)
    return count if count > 1 and can_fork() else 0


def _process_share() -> Share:
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else Share()


class _Verdicts(torch.utils.data.Dataset[Verdict]):
    """The verdicts of some rows, found when they are asked for."""

    def __init__(self, dataset: Dataset, check: Check, indices: Sequence[int]) -> None:
        self.dataset, self.check, self.indices = dataset, check, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Verdict:
        index = self.indices[place]
        row: Mapping[str, Any] = {}
        with noted_files() as files:
            try:
                row = _read_row(self.dataset, index)
                self.check(row, index=index)
            except UserError as error:
                return Verdict(index, str(row["id"] if row.get("id") is not None else index), str(error), files)
        return Verdict(index, "", None, files)


def _read_row(dataset: Dataset, index: int) -> Mapping[str, Any]:
    try:
        return dataset[index]
    except UnicodeDecodeError as error:
        # Arrow takes any bytes for text until they are read.
        raise UserError(f"the row holds text that is no UTF-8: {error}") from error


def _check_together(
    dataset: Dataset, check: Check, share: Share, num_workers: int, bar: tqdm, files: dict[str, FileState]
) -> Iterator[Verdict]:
    """Yield all verdicts in the rows' order, on each process the same ones, and collect the image files that rows name."""
    verdicts = _Verdicts(dataset, check, share.take(range(len(dataset))))
    loader = DataLoader(
        verdicts,
        batch_size=BATCH,
        collate_fn=list,
        num_workers=num_workers,
        # A check is a method's, and a method holds models: a copy of the process has them, and nothing is sent.
        multiprocessing_context="fork" if num_workers else None,
        # Its first number would be drawn from what training draws from.
        generator=torch.Generator(),
    )
    batches: Iterator[list[Verdict]] = iter(loader)
    for _ in range(math.ceil(len(dataset) / share.count / BATCH)):
        with lost_workers("checks rows", count=num_workers, option="--check-workers", then="it begins anew"):
            mine = next(batches, [])
        found = sorted(chain.from_iterable(_gather(mine, share)), key=lambda verdict: verdict.row)
        for verdict in found:
            files.update(verdict.files)
        yield from found
        bar.update(len(found))


def _gather(mine: list[Verdict], share: Share) -> list[list[Verdict]]:
    if share.count == 1:
        return [mine]
    parts: list[list[Verdict]] = [[] for _ in range(share.count)]
    dist.all_gather_object(parts, mine)
    return parts

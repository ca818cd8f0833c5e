"""Rows checked in workers and by several processes: the same verdicts, the same file."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from datasets import Dataset

from mmalign.data.checking import BATCH, choose_workers, keep_good_rows
from mmalign.data.rejects import Rejects
from mmalign.data.verdicts import KeptVerdicts
from mmalign.errors import UserError

NUM_ROWS = 3 * BATCH + 7


def rows(*, every: int = 29) -> Dataset:
    """Numbers, one in ``every`` of them broken; some rows have no id."""
    return Dataset.from_list([{"id": None if i % 2 else f"row-{i}", "value": -i if i % every == 5 else i} for i in range(NUM_ROWS)])


def check(row: Mapping[str, Any], *, index: int) -> None:
    if row["value"] < 0:
        raise UserError(f"value is {row['value']} in row {index}")


def select(folder: Path, *, every: int = 29, max_share: float = 0.2, first: bool = True, **options: Any) -> tuple[list[int], str]:
    """The good rows and the bytes of the rejects file."""
    rejects = Rejects(folder / "rejects.jsonl", max_share=max_share, write=first)
    good = keep_good_rows(rows(every=every), check, rejects=rejects, **options)
    assert len(good) + rejects.num_rejected == NUM_ROWS
    return good["value"][:], (folder / "rejects.jsonl").read_text() if first else ""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_find_what_one_process_finds(num_workers: int, tmp_path: Path) -> None:
    expected = select(tmp_path)
    assert expected[1].startswith('{"id": "5", "reason": "value is -5 in row 5"}\n{"id": "row-34", ')
    state = torch.get_rng_state()
    assert select(tmp_path, num_workers=num_workers) == expected
    assert torch.equal(torch.get_rng_state(), state), "training draws what it drew without a check"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_check_stops_at_the_row_where_the_share_is_too_large(num_workers: int, tmp_path: Path) -> None:
    # Rows 5, 12 and 19 are broken; before the twentieth row no share is judged.
    with pytest.raises(UserError, match=r"^3 of 20 rows are broken, more than the tolerated share of 14.9%"):
        select(tmp_path, every=7, max_share=0.149, num_workers=num_workers)
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 3


def die(row: Mapping[str, Any], *, index: int) -> None:
    if index == 200:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_named(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.0)
    with pytest.raises(ChildProcessError, match="a process that checks rows died.*lower --check-workers"):
        keep_good_rows(rows(), die, rejects=rejects, num_workers=1)


def test_workers_are_chosen_by_cores_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [choose_workers(None, rows) for rows in (100, 2 * BATCH, 4 * BATCH, 100_000)] == [0, 0, 2, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_workers(None, 100_000) == 2
    assert [choose_workers(asked, 10) for asked in (0, 3)] == [0, 3]


def check_a_share(rank: int, folder: Path, count: int, num_workers: int) -> None:
    """A process of several; each sees the same good rows, and the first one writes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    seen = []

    def note(row: Mapping[str, Any], *, index: int) -> None:
        seen.append(index)
        check(row, index=index)

    rejects = Rejects(folder / "rejects.jsonl", max_share=0.2, write=rank == 0)
    good = keep_good_rows(rows(), note, rejects=rejects, num_workers=num_workers)
    assert num_workers or seen == list(range(rank, NUM_ROWS, count))
    with pytest.raises(UserError, match="^2 of 35 rows are broken"):
        keep_good_rows(rows(), check, rejects=Rejects(folder / "stopped.jsonl", max_share=0.05, write=rank == 0), num_workers=num_workers)
    # Each has a disk of its own: what the first one finds there counts for all.
    datasets.config.HF_DATASETS_CACHE = folder / f"cache-{rank}"
    for turn, checked in (("kept", True), ("read", False)):
        seen.clear()
        rejects = Rejects(folder / f"{turn}.jsonl", max_share=0.2, write=rank == 0)
        again = keep_good_rows(rows(), note, rejects=rejects, num_workers=num_workers, kept=KeptVerdicts({"data": "numbers"}))
        assert again["value"][:] == good["value"][:]
        assert num_workers or bool(seen) == checked
    assert (folder / f"cache-{rank}").exists() == (rank == 0)
    (folder / f"good-{rank}").write_text(str(good["value"][:]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(("count", "num_workers"), [(2, 0), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_processes_share_the_check(count: int, num_workers: int, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    good, written = select(tmp_path / "alone")
    mp.spawn(check_a_share, args=(tmp_path, count, num_workers), nprocs=count)
    assert [(tmp_path / f"good-{rank}").read_text() for rank in range(count)] == [str(good)] * count
    assert {(tmp_path / f"{name}.jsonl").read_text() for name in ("rejects", "kept", "read")} == {written}
    assert len((tmp_path / "stopped.jsonl").read_text().splitlines()) == 2

"""Processes of one run that read data for it."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mmalign.errors import UserError


def refuse_several(program: str) -> None:
    """Raise UserError if a launcher started several processes of a program that does not share its work among them."""
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number > 1:
        raise UserError(f"WORLD_SIZE is {number}; expected one process: start {program} without torchrun or accelerate launch")


def count_cores() -> int:
    """Count the cores that this process may use; those that a launcher started on the same machine get equal parts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def can_fork() -> bool:
    """Say whether a process can be copied with all that it holds, which costs no time and no memory; macOS's libraries don't bear it."""
    return "fork" in multiprocessing.get_all_start_methods() and os.uname().sysname == "Linux"


@contextmanager
def lost_workers(work: str, *, count: int, option: str, then: str) -> Iterator[None]:
    """Name the loss of a worker of torch's DataLoader, which has no class of its own.

    Args:
        work: What the workers do, such as ``loads data``.
        count: How many there are.
        option: Their number's.
        then: What the same command does next time.

    Raises:
        ChildProcessError: If one died.
    """
    try:
        yield
    except (RuntimeError, ConnectionResetError) as error:
        # A process that dies while it hands a batch over resets the connection.
        lost = isinstance(error, ConnectionResetError) and count > 0
        if not lost and "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that {work} died, as for want of memory ({error}); lower {option}, and run the same command again: {then}"
        ) from error

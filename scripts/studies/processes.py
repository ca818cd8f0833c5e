"""A study's runs over processes, which end with it."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import FrameType
from typing import Any


def run_over_processes(work: Callable[..., None], calls: Iterable[Sequence[Any]], *, processes: int) -> None:
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

"""A command in a process of its own, forked from a warm server: what costs seconds, the imports, is done once for all trials.

The server does nothing but import, so that it has no threads whose locks a forked process would wait for.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from mmalign.cli import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.survival.warm"])


def start_command(words: Sequence[str], *, log: Path, prepare: Callable[[], None] | None = None) -> BaseProcess:
    """Begin ``mmalign WORDS``; the process ends with the command's exit code.

    Args:
        words: The command line.
        log: What it prints is appended here.
        prepare: Called in the process before the command, to set a limit or put a fault in; a function of a module.
    """
    process = CONTEXT.Process(target=_run, args=(list(words), log, prepare))
    process.start()
    return process


def _run(words: list[str], log: Path, prepare: Callable[[], None] | None) -> None:
    os.setsid()
    # What a command begins of its own is begun as in a shell, and has the faults that were put in here.
    multiprocessing.set_start_method("fork", force=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    if prepare is not None:
        prepare()
    sys.exit(main(words))


def wait(process: BaseProcess, *, seconds: float = 120.0) -> int:
    """Wait for a command.

    Returns:
        Its exit code, or minus the signal that ended it.
    """
    process.join(seconds)
    if process.exitcode is None:
        kill(process)
        process.join()
        raise AssertionError(f"the command did not end within {seconds:g} s")
    return process.exitcode


def kill(process: BaseProcess) -> None:
    """Kill -9 the command and the processes that it started."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        # Before it leads a group of its own there is only itself.
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def run_command(words: Sequence[str], *, log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run ``mmalign WORDS`` to its end; return its exit code."""
    return wait(start_command(words, log=log, prepare=prepare))

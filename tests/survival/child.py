"""A command in a process of its own, made from a warm one: what costs seconds, the imports, is done once for all trials."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def fork_command(words: Sequence[str], *, log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Begin ``mmalign WORDS`` in a forked process and return its number; it ends with the command's exit code.

    Args:
        words: The command line.
        log: What it prints is appended here.
        prepare: Called in the process before the command, to set a limit or put a fault in.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        # Under pytest they are its own files and not these.
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if prepare is not None:
            prepare()
        from mmalign.cli import main

        code = main(list(words))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int, *, seconds: float = 120.0) -> int:
    """Wait for a forked command.

    Returns:
        Its exit code, or minus the signal that ended it.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    kill(process)
    os.waitpid(process, 0)
    raise AssertionError(f"the command did not end within {seconds:g} s")


def kill(process: int) -> None:
    """Kill -9 the command and the processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def run_command(words: Sequence[str], *, log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run ``mmalign WORDS`` to its end in a forked process; return its exit code."""
    return wait(fork_command(words, log=log, prepare=prepare))

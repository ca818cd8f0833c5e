"""A run of two processes that SIGTERM or kill -9 stops: whole checkpoints, code 143, and an end as if nothing had been."""

import os
import re
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmalign.training.checkpoints import verify_checkpoint
from tests.survival.commands import Inputs, make_inputs, read_run, train
from tests.training.launching import launch, start_two

WORDS = train("mimic", "--ce-weight", "1", "--stage", "dense-to-dense")
MODULE = "tests.training.launched_command"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Any]:
    """What two processes end with when nothing happens to them; run once for each kind."""

    @cache
    def find(sharded: bool) -> Any:
        return run(inputs, tmp_path_factory.mktemp("undisturbed"), sharded=sharded)[0]

    return find


def run(inputs: Inputs, folder: Path, *, sharded: bool) -> tuple[Any, str]:
    """Let two processes end; return what they end with, and what was printed."""
    done = launch(folder, "-m", MODULE, *WORDS(inputs, folder / "out"), sharded=sharded)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("the weights were sharded") == 2 * sharded
    return read_run(folder / "out"), done.stdout


def disturb(inputs: Inputs, folder: Path, *, after: str, number: int, whom: str, sharded: bool = False) -> str:
    """Send a signal in the middle of a step, to the launcher, one process, or all; return what was printed.

    Args:
        inputs: Models and data.
        folder: Of the run.
        after: Printed by the step before.
        number: The signal.
        whom: ``launcher``, ``one`` or ``all``.
        sharded: FSDP, or DDP.
    """
    with start_two(folder, "-m", MODULE, "slow", *WORDS(inputs, folder / "out"), sharded=sharded) as process:
        assert process.stdout is not None
        printed = ""
        while after not in printed:
            line = process.stdout.readline()
            assert line, "the run ended before"
            printed += line
        workers = [child.pid for child in psutil.Process(process.pid).children()]
        # The next step has begun, a third of a second long.
        time.sleep(0.1)
        for pid in {"launcher": [process.pid], "one": workers[1:], "all": [process.pid, *workers]}[whom]:
            os.kill(pid, number)
        rest, errors = process.communicate(timeout=120)
    # The launcher's own code, whatever its processes ended with.
    assert process.returncode == 1, errors[-4000:]
    return printed + rest


def find_saved(printed: str, folder: Path) -> Path:
    """Return the checkpoint that was saved because of SIGTERM, and check how the processes left."""
    found = re.search(r"stopped by SIGTERM at step (\d+), which is saved", printed)
    assert found, printed
    assert printed.count("left the group with 143") == 2, printed
    assert 0 < int(found[1]) < 10
    checkpoint = folder / "out" / "checkpoints" / f"checkpoint-{found[1]}"
    assert verify_checkpoint(checkpoint) is None
    return checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(("sharded", "whom"), [(False, "launcher"), (True, "one")], ids=["ddp", "fsdp2"])
def test_a_run_stopped_by_sigterm_ends_like_an_undisturbed_one(
    inputs: Inputs, undisturbed: Callable[[bool], Any], tmp_path: Path, sharded: bool, whom: str
) -> None:
    """To the launcher, which passes it on, or to one process, which tells the other."""
    printed = disturb(inputs, tmp_path, after="  loss ", number=signal.SIGTERM, whom=whom, sharded=sharded)
    checkpoint = find_saved(printed, tmp_path)
    end, printed = run(inputs, tmp_path, sharded=sharded)
    assert f"resuming from {checkpoint}\n" in printed
    assert end == undisturbed(sharded)


@pytest.mark.slow
def test_sigterm_to_every_process_of_a_job_is_one_request(inputs: Inputs, tmp_path: Path) -> None:
    """As Slurm sends it: both processes get it twice, the second time from the launcher."""
    find_saved(disturb(inputs, tmp_path, after="  loss ", number=signal.SIGTERM, whom="all"), tmp_path)


@pytest.mark.slow
def test_one_process_killed_ends_both_and_the_run_goes_on(inputs: Inputs, undisturbed: Callable[[bool], Any], tmp_path: Path) -> None:
    """In the step after the one that follows the first checkpoint."""
    printed = disturb(inputs, tmp_path, after=" 4/10  loss ", number=signal.SIGKILL, whom="one")
    assert "left the group" not in printed
    end, printed = run(inputs, tmp_path, sharded=False)
    assert f"resuming from {tmp_path / 'out' / 'checkpoints' / 'checkpoint-3'}\n" in printed
    assert end == undisturbed(False)

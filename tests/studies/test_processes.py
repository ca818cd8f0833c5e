"""Runs over processes: in order, a failure is told, and none outlives the study."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts.studies.processes import run_over_processes

REPOSITORY = Path(__file__).parents[2]
SLEEPERS = "import time; from scripts.studies.processes import run_over_processes\nif __name__ == '__main__':\n"
SLEEPERS += "    run_over_processes(time.sleep, [(60,)] * 5, processes=2)\n"


def test_calls_are_made_and_a_failure_is_raised(tmp_path: Path) -> None:
    run_over_processes(os.mkdir, [(tmp_path / "one",), (tmp_path / "two",)], processes=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    with pytest.raises(FileExistsError):
        run_over_processes(os.mkdir, [(tmp_path / "one",)], processes=1)


def test_sigterm_ends_the_processes_too(tmp_path: Path) -> None:
    """The signal is sent to the study alone, as ``kill PID`` does."""
    program = tmp_path / "sleepers.py"
    program.write_text(SLEEPERS)
    study = subprocess.Popen([sys.executable, program], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    workers: list[psutil.Process] = []
    try:
        limit = time.monotonic() + 60
        # Two workers, and multiprocessing's own resource tracker.
        while len(workers := psutil.Process(study.pid).children()) < 3 and time.monotonic() < limit:
            time.sleep(0.1)
        study.send_signal(signal.SIGTERM)
        assert study.wait(timeout=30) == 128 + signal.SIGTERM
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert len(workers) == 3
        assert not alive
    finally:
        for process in (*workers, study):
            if process.pid and psutil.pid_exists(process.pid):
                process.kill()

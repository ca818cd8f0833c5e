"""The harness of studies: what is missing runs, in order, over processes; a failure is told, and none outlives the study."""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from mmalign.files import read_json
from scripts.studies.study import run_missing, run_over_processes, slug, write_json

REPOSITORY = Path(__file__).parents[2]
SLEEPERS = "import time; from scripts.studies.study import run_over_processes\nif __name__ == '__main__':\n"
SLEEPERS += "    run_over_processes(time.sleep, [(60,)] * 5, 2)\n"


@dataclass(frozen=True)
class Cell:
    """A cell that writes down which process ran it, after how many others."""

    name: str
    group: int

    def path(self, out: Path) -> Path:
        return out / "cells" / f"{self.name}.json"


def run_cell(cell: Cell, out: Path) -> str:
    write_json(cell.path(out), {"process": os.getpid(), "before": len(list(out.glob("cells/*.json")))})
    return "done"


def group_of(cell: Cell) -> int:
    return cell.group


def test_what_is_missing_runs_and_cells_of_a_group_share_a_process(tmp_path: Path) -> None:
    options = argparse.Namespace(out=tmp_path, processes=2, end=math.inf)
    write_json(tmp_path / "cells" / "b.json", {"process": -1})
    cells = [Cell("a", 1), Cell("b", 1), Cell("c", 2), Cell("d", 1)]
    run_missing(cells, partial(run_cell, out=tmp_path), options, together=group_of)
    found = {cell.name: read_json(cell.path(tmp_path)) for cell in cells}
    assert found["b"] == {"process": -1}, "a finished run is kept"
    assert found["a"]["process"] == found["d"]["process"]
    assert found["a"]["before"] < found["d"]["before"]


def test_no_cell_is_started_after_the_time(tmp_path: Path) -> None:
    options = argparse.Namespace(out=tmp_path, processes=1, end=time.time() - 1)
    run_missing([Cell("a", 1)], partial(run_cell, out=tmp_path), options)
    assert not list(tmp_path.glob("cells/*"))


def test_a_name_as_a_file_s() -> None:
    """Folders of earlier runs are found by these."""
    assert slug("80% easy, 10% flipped") == "80-easy-10-flipped"
    assert slug("DPO, beta 0.03") == "dpo-beta-0.03"
    assert slug("DPO + anchor") == slug(slug("DPO + anchor")) == "dpo-anchor"


def test_calls_are_made_and_a_failure_is_raised(tmp_path: Path) -> None:
    run_over_processes(os.mkdir, [(tmp_path / "one",), (tmp_path / "two",)], 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    with pytest.raises(FileExistsError):
        run_over_processes(os.mkdir, [(tmp_path / "one",)], 1)


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


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import subprocess, sys, time\n"
        "child = 'import time; from scripts.studies.study import end_with_parent as end; end(); print(1, flush=True); time.sleep(60)'\n"
        "found = subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE)\n"
        "found.stdout.readline()\n"
        "print(found.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, program], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(timeout=30)

"""Two trainings into one folder: the second is refused while the first is at work, and never after it has died."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from mmalign.errors import UserError
from mmalign.files import RUN_FILE
from mmalign.runs.run_record import claim_folder, claiming

RECORD = {"method": "sft", "options": {"seed": 0}, "data": {"rows.jsonl": "1"}, "processes": 1, "weights": {}}


def _work(out: Path, said: Connection) -> None:
    """Claim the folder, fork a worker that lives on, and wait to be killed."""
    with claiming(out):
        claim_folder(out, RECORD)
        if (worker := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        said.send(worker)
        time.sleep(60)


def test_a_folder_is_refused_while_another_process_is_at_work_in_it_and_free_once_that_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    heard, said = multiprocessing.Pipe(duplex=False)
    first = multiprocessing.get_context("spawn").Process(target=_work, args=(out, said))
    first.start()
    worker = heard.recv()
    try:
        with pytest.raises(UserError, match="another process is at work in .*run; wait"), claiming(out):
            claim_folder(out, RECORD)
        assert (out / RUN_FILE).is_file()
        first.kill()
        first.join()
        os.kill(worker, 0)
        with claiming(out):
            claim_folder(out, RECORD)
    finally:
        first.kill()
        os.kill(worker, signal.SIGKILL)


def test_a_process_resumes_into_its_own_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with claiming(tmp_path / "run"):
            claim_folder(tmp_path / "run", RECORD)
            claim_folder(tmp_path / "run", RECORD)


def test_a_file_system_without_locks_is_as_good_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(held: int, operation: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claiming(tmp_path / "run"):
        claim_folder(tmp_path / "run", RECORD)
    with pytest.raises(UserError, match="its seed is 0, not 1"), claiming(tmp_path / "run"):
        claim_folder(tmp_path / "run", RECORD | {"options": {"seed": 1}})

"""What can befall a run beside kill -9: a full disk, a folder that can't be written, SIGTERM, damage, dead workers, NaN."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.survival.child import kill, run_command, start_command, wait
from tests.survival.commands import CASES, Inputs, make_inputs, read_run
from tests.survival.faults import die_before_the_manifest_of_step_6, kill_worker, limit_files, put_nan_in_a_batch, slow_steps

TRAIN = CASES["train sft"]
OTHERS = ("model.safetensors", "rng_state.pth", "trainer_state.json", "manifest.json")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_command(TRAIN.words(inputs, folder / "out"), log=folder / "log") == 0, (folder / "log").read_text()
    return folder / "out"


def wait_for(found: Callable[[], object], process: BaseProcess, *, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "what was waited for did not come"
        assert process.exitcode is None, "the run ended before"
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train sft", "classifier train"])
def test_sigterm_saves_and_leaves_with_143(name: str, inputs: Inputs, tmp_path: Path) -> None:
    words, log = CASES[name].words(inputs, tmp_path / "out"), tmp_path / "log"
    # More steps than it will take, and no checkpoint of its own: what is there was saved because of the signal.
    long = [*words, "--max-steps", "2000", "--save-steps", "2000"]
    process = start_command(long, log=log)
    wait_for(lambda: log.is_file() and "  loss " in log.read_text(), process)
    process.terminate()
    assert wait(process) == 143, log.read_text()
    (checkpoint,) = (tmp_path / "out" / "checkpoints").glob("checkpoint-*/manifest.json")
    step = int(checkpoint.parent.name.split("-")[1])
    assert 0 < step < 2000
    assert f"stopped by SIGTERM at step {step}, which is saved; the same command resumes from there" in log.read_text()
    assert not list((tmp_path / "out").glob("*.safetensors"))
    # It goes on from that step, and the signal's own checkpoint is as good as any.
    process = start_command(long, log=log)
    wait_for(lambda: f"resuming from {checkpoint.parent}" in log.read_text(), process)
    kill(process)
    wait(process)


def test_a_run_stopped_by_sigterm_ends_like_an_undisturbed_one(inputs: Inputs, whole: Path, tmp_path: Path) -> None:
    words, log = TRAIN.words(inputs, tmp_path / "out"), tmp_path / "log"

    process = start_command(words, log=log, prepare=slow_steps)
    wait_for(lambda: log.is_file() and "  loss " in log.read_text(), process)
    process.terminate()
    assert wait(process) == 143, log.read_text()
    assert run_command(words, log=log) == 0, log.read_text()
    assert read_run(tmp_path / "out") == read_run(whole)


@pytest.mark.parametrize("size", [30_000, pytest.param(400_000, marks=pytest.mark.slow)])
def test_a_full_disk_stops_with_a_reason_and_the_run_goes_on(inputs: Inputs, whole: Path, tmp_path: Path, size: int) -> None:
    """Full at the weights, or only at the larger state of the optimiser."""
    words, log = TRAIN.words(inputs, tmp_path / "out"), tmp_path / "log"
    largest = max(path.stat().st_size for path in (whole / "checkpoints").rglob("*") if path.is_file())
    assert size < largest
    assert run_command(words, log=log, prepare=partial(limit_files, size)) == 1, log.read_text()
    assert "checkpoint-3 can't be saved: " in log.read_text()
    assert "Traceback" not in log.read_text()
    assert run_command(words, log=log) == 0, log.read_text()
    assert read_run(tmp_path / "out") == read_run(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of half a megabyte, where the system lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_file_system(inputs: Inputs, small_disk: Path, tmp_path: Path) -> None:
    assert run_command(TRAIN.words(inputs, small_disk / "out"), log=tmp_path / "log") == 1, (tmp_path / "log").read_text()
    # One library says that no space is left, the next one that a write failed: the folder and what to do are said always.
    assert "can't be saved" in (tmp_path / "log").read_text() or "No space left on device" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", list(CASES))
def test_output_that_can_not_be_written(name: str, inputs: Inputs, tmp_path: Path) -> None:
    """A file where the folder is to be: read-only folders don't stop root."""
    (tmp_path / "file").write_text("")
    assert run_command(CASES[name].words(inputs, tmp_path / "file" / "out"), log=tmp_path / "log") in (1, 2)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert str(tmp_path / "file") in log


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    assert run_command(TRAIN.words(inputs, tmp_path / "closed" / "out"), log=tmp_path / "log") == 1
    assert "Permission denied" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", ["optimizer.pt", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_checkpoint_cut_short_is_passed_over(name: str, inputs: Inputs, whole: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(whole, out)
    record = json.loads((out / "mmalign_run.json").read_text())
    record["options"]["out"] = str(out)
    (out / "mmalign_run.json").write_text(json.dumps(record))
    (out / "model.safetensors").unlink()
    path = out / "checkpoints" / "checkpoint-10" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    assert run_command(TRAIN.words(inputs, out), log=log) == 0, log.read_text()
    assert f"skipping {out}/checkpoints/checkpoint-10: " in log.read_text()
    assert f"resuming from {out}/checkpoints/checkpoint-9" in log.read_text()
    assert read_run(out) == read_run(whole)


@pytest.mark.slow
def test_a_whole_checkpoint_is_there_even_where_only_one_is_kept(inputs: Inputs, tmp_path: Path) -> None:
    """Killed between the save of a checkpoint and its manifest: the one before must still be there."""
    words, log = [*TRAIN.words(inputs, tmp_path / "out"), "--save-total-limit", "1"], tmp_path / "log"
    assert run_command(words, log=log, prepare=die_before_the_manifest_of_step_6) == -signal.SIGKILL
    assert run_command(words, log=log) == 0, log.read_text()
    assert "checkpoint-6: it was not saved to its end" in log.read_text()
    assert "checkpoints/checkpoint-3\n" in log.read_text()
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["checkpoint-10"]


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_and_it_goes_on(inputs: Inputs, whole: Path, tmp_path: Path) -> None:
    words, log = [*TRAIN.words(inputs, tmp_path / "out"), "--num-workers", "1"], tmp_path / "log"
    assert run_command(words, log=log, prepare=kill_worker) == 1, log.read_text()
    assert "a process that loads data died" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert run_command(words, log=log) == 0, log.read_text()
    weights, steps, *_ = read_run(tmp_path / "out")
    assert (weights, steps) == read_run(whole)[:2]


def test_nan_in_a_batch_stops_before_it_reaches_the_weights(inputs: Inputs, whole: Path, tmp_path: Path) -> None:
    words, log = TRAIN.words(inputs, tmp_path / "out"), tmp_path / "log"
    assert run_command(words, log=log, prepare=put_nan_in_a_batch) == 2, log.read_text()
    assert "the loss is nan at step" in log.read_text()
    assert list((tmp_path / "out" / "checkpoints").glob("bad_batch_step*_rank0.safetensors"))
    # The same command without the fault goes on from the checkpoint before.
    assert run_command(words, log=log) == 0, log.read_text()
    assert read_run(tmp_path / "out") == read_run(whole)

"""A training run that is killed goes on by the same command, and ends in the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.data_files import save_rows, scored_rows


def command(model: Path, data: Path, out: Path) -> list[str]:
    words = ["--model", str(model), "--data", str(data), "--out", str(out), "--difficulty-mode", "paper", "--reference", "cached"]
    words += ["--max-steps", "12", "--save-steps", "4", "--batch-size", "2", "--learning-rate", "1e-3", "--logging-steps", "1"]
    return [sys.executable, "-m", "mmalign", "train", "preference", *words]


def wait_for(path: Path, process: subprocess.Popen[bytes], *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.005)


@pytest.mark.parametrize("moment", ["checkpoint-4/manifest.json", "checkpoint-8"])
def test_killed_run_ends_like_an_undisturbed_one(tiny_llava_dir: Path, tmp_path: Path, moment: str) -> None:
    """Killed once after a whole checkpoint, once in the middle of writing one."""
    data = save_rows(tmp_path / "pairs.parquet", scored_rows(10))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(tiny_llava_dir, data, whole), check=True, capture_output=True, env=environment)
    process = subprocess.Popen(command(tiny_llava_dir, data, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    wait_for(killed / "checkpoints" / moment, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists()
    resumed = subprocess.run(command(tiny_llava_dir, data, killed), check=True, capture_output=True, text=True, env=environment)
    assert "going on from" in resumed.stdout
    expected, got = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert set(expected) == set(got)
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    before = load_file(tiny_llava_dir / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in expected.items())

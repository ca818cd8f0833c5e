"""``accelerate launch`` with two processes on one machine without a GPU: DDP, FSDP2, and the command line."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForImageTextToText

from tests.data_files import chat_rows, save_rows
from tests.training.two_trainers import CASES, run_alone

REPOSITORY = Path(__file__).resolve().parents[2]


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Start two processes. ``--cpu`` would start one: the kind for GPUs selects the launcher that starts as many as asked for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "use_cpu": True, "num_machines": 1}
    config |= {"num_processes": 2, "mixed_precision": "no", "main_process_port": port}
    (folder / "launch.yaml").write_text(yaml.safe_dump(config))
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "launch.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    run_alone(tmp_path)
    done = launch(tmp_path, "-m", "tests.training.two_trainers", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    expected = [f"{wrapper} {case}: losses, metrics and saved weights equal" for wrapper in ("ddp", "fsdp2") for case in CASES]
    assert [line for line in done.stdout.splitlines() if line.endswith("equal")] == expected
    assert "terminate called" not in done.stderr


@pytest.mark.slow
def test_the_command_line_under_two_processes(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """One folder, one record, one model; both processes leave the group and end in order, and so they do where the input is refused."""
    data = save_rows(tmp_path / "chats.parquet", chat_rows(8))
    words = ["train", "sft", "--model", str(tiny_llava_dir), "--data", str(data), "--max-steps", "2", "--batch-size", "2"]
    done = launch(tmp_path, "-m", "tests.training.launched_command", *words, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("left the group with 0") == 2
    assert "terminate called" not in done.stderr
    record = json.loads((tmp_path / "out" / "mmalign_run.json").read_text())
    assert record["batch"] == 4
    _, loading = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading

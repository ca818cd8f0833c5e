"""``accelerate launch`` of two processes on one machine without a GPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FSDP = REPOSITORY / "scripts" / "accelerate" / "fsdp2_8gpu.yaml"


def start_two(folder: Path, *words: str, sharded: bool = False) -> subprocess.Popen[str]:
    """Start two processes of ``python WORDS``.

    ``--cpu`` would start one: a kind for GPUs selects the launcher that starts as many as asked for.

    Args:
        folder: For the launch config.
        words: Begin with ``-m`` and a module.
        sharded: Launch by the shipped config of FSDP; the module has to see to it that a CPU is sharded.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kind = yaml.safe_load(FSDP.read_text()) if sharded else {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU"}
    config = {**kind, "use_cpu": True, "num_machines": 1, "num_processes": 2, "mixed_precision": "no", "main_process_port": port}
    (folder / "launch.yaml").write_text(yaml.safe_dump(config))
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "launch.yaml"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(start, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(folder: Path, *words: str, sharded: bool = False, seconds: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run two processes to their end; see ``start_two``."""
    with start_two(folder, *words, sharded=sharded) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # Its two processes end with it.
            process.terminate()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

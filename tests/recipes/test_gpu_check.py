"""``scripts/gpu_check.sh``: its arithmetic by hand, and the whole of it on the CPU at a tiny size."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rates_and_utilisation_by_hand(script: Any) -> None:
    """4 pairs of 2,000 tokens in half a second; 98.9 TFLOP in half a second are a fifth of 989 TFLOP/s."""
    results = {"a": {"seconds": 0.5, "pairs": 4, "tokens": 2000, "flops": 98.9e12, "peak": 1234.4}, "b": {"failed": "out | of memory"}}
    lines = script.speed_table(results, "NVIDIA H100 80GB HBM3, 79 GiB").splitlines()
    assert lines[2] == "| a | 0.500 | 8.00 | 4,000 | 1,234 | 20.0% |"
    assert lines[3] == "| b | failed: out \\| of memory |  |  |  |  |"
    assert script.speed_table(results, "NVIDIA Unknown").splitlines()[2].endswith("| unknown |")


def test_attention_is_judged_by_the_noise_of_bf16(script: Any) -> None:
    assert script.check_attention({"flex_from_sdpa": 0.19, "sdpa_from_plain": 0.1, "tokens": 9})[0]
    assert not script.check_attention({"flex_from_sdpa": 0.21, "sdpa_from_plain": 0.1, "tokens": 9})[0]
    assert not script.check_attention({"failed": "no"})[0]


def test_a_missing_gpu_is_said(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    words = [str(ROOT / "scripts" / "gpu_check.sh"), "--out", str(tmp_path / "page.md")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"})
    assert done.returncode == 1
    assert "no CUDA device; --device cpu --model tiny shows that the script runs" in done.stderr


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(shared_data: Path, tmp_path: Path) -> None:
    photos = next((shared_data / "cifar10").glob("*.parquet"))
    words = [str(ROOT / "scripts" / "gpu_check.sh"), "--device", "cpu", "--model", "tiny", "--steps", "1", "--batch-size", "1"]
    words += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "page.md"), "--photos", str(photos), "--tests", "tests/engine"]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    page = (tmp_path / "page.md").read_text()
    assert done.returncode == 0, page + done.stderr[-2000:]
    for arm in ("preference bfloat16", "preference nf4", "scoring bfloat16", "scoring nf4"):
        assert re.search(rf"\| {arm} \| [\d.]+ \| [\d.]+ \| [\d,]+ \| [\d,]+ \| unknown \|", page), page
    assert "| FlexAttention equals SDPA | passed |" in page
    assert "| photo world | passed | 2 steps of fine-tuning" in page
    assert "no measurement" in page

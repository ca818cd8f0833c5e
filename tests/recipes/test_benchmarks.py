"""The benchmarks: their section in a page, and each at a tiny size; two of them check that their arms agree before they measure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.bench import start_peak, write_section
from tests.conftest import REPOSITORY


def test_a_section_replaces_the_one_of_its_title_and_no_other(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n### one\n\nold\n\n## next\n\n### two\n\nstays\n")
    write_section("### one\n\nnew\n", page=page)
    assert page.read_text() == "# Page\n\n### one\n\nnew\n\n## next\n\n### two\n\nstays\n"
    write_section("### three\n\nadded\n", page=page)
    assert page.read_text().endswith("stays\n\n### three\n\nadded\n")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells a process's peak of memory")
def test_memory_that_is_held_is_counted() -> None:
    before = start_peak()
    held = bytearray(256 * 2**20)
    # What else the process takes meanwhile is some MB.
    assert start_peak() - before == pytest.approx(256, abs=16)
    del held


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells a process's peak of memory")
@pytest.mark.parametrize(
    ("name", "words", "rows"),
    [
        ("scoring", ["--pairs", "2", "--rounds", "1"], ["ours", "plain"]),
        (
            "preference_step",
            ["--rounds", "1", "--steps", "1", "--arms", "ours cached", "full logits live"],
            ["ours cached", "full logits live"],
        ),
        ("distillation_step", ["--rounds", "1", "--arms", "ours", "full logits"], ["ours", "full logits"]),
        ("packed_chats", ["--rounds", "1", "--batch-size", "4"], ["none", "256", "512", "1024"]),
        ("group_step", ["--rounds", "1", "--group", "4", "--arms", "ours"], ["ours"]),
        ("distillation_step", ["--rounds", "1", "--sparse"], ["dense", "sparse grouped_mm", "sparse eager"]),
    ],
)
def test_a_benchmark_at_a_tiny_size(name: str, words: list[str], rows: list[str], tmp_path: Path) -> None:
    command = [sys.executable, f"scripts/benchmarks/{name}.py", "--model", "tiny", "--work", str(tmp_path), *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split(" | ")[0][2:] for line in done.stdout.splitlines() if line.startswith("| ")][1:] == rows

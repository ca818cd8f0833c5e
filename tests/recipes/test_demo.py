"""The demo's quick form from an empty folder: pages that are joined, and a log without dicts and messages of libraries."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.reports.html_page import check_self_contained


@pytest.mark.slow
def test_demo_ends_with_pages_and_a_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmalign", "demo", "--smoke", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = check_self_contained((tmp_path / "demo" / "report.html").read_text())
    links = [value for tag, value in page.attributes("href") if tag == "a"]
    assert links == ["difficulty.html", "training.html"]
    for link in links:
        check_self_contained((tmp_path / "demo" / link).read_text())
    assert done.stdout.count("\nstep ") == 9, "three steps of SFT, of DPO and of DA-DPO"
    assert "{" not in done.stdout
    end = done.stdout[done.stdout.rindex("$ mmalign report eval") :]
    for label in ("SFT", "DPO", "DA-DPO", "Captions with an absent object", "Coverage: present objects named", "F1"):
        assert label in end
    # Bars that were there and went leave an empty line; what is left are states of mmalign's own bars, and a note on models of three steps.
    shown = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip() and "answers are empty" not in line]
    assert {line.partition(":")[0].split()[0] for line in shown} <= {"drawing", "checking", "scoring", "answering"}

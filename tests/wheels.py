"""The project's wheel, built and run as a user's environment has it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def build_wheel(folder: Path) -> Path:
    """Build the wheel into a folder."""
    # Without hatchling here pip fetches it.
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    subprocess.run([*PIP, "wheel", "--no-deps", *isolation, "--wheel-dir", str(folder), str(REPOSITORY)], check=True)
    (wheel,) = folder.glob("mmalign-*.whl")
    return wheel


def run_outside(*words: object, cwd: Path) -> str:
    """Run a program that does not see this checkout; returns what it prints.

    Raises:
        AssertionError: With the end of its errors, if it fails.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MMALIGN")}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

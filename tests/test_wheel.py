"""From a wheel, in an empty folder: what the documentation promises works without the checkout."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from mmalign import __version__
from mmalign.recipes import find_recipes
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that has the wheel, and sees the packages that it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Without hatchling here pip fetches it.
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    subprocess.run([*pip, "wheel", "--no-deps", *isolation, "--wheel-dir", str(folder), str(REPOSITORY)], check=True)
    (wheel,) = folder.glob("mmalign-*.whl")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # The .pth files in there, such as that of an editable mmalign, are not read again.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def run(*words: object, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MMALIGN")}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_package_is_the_wheels(binaries: Path, empty: Path) -> None:
    code = "import data_tools, mmalign, schedules; print(*(m.__file__ for m in (data_tools, mmalign, schedules)))"
    files = run(binaries / "python", "-c", code, cwd=empty).split()
    assert [Path(file).is_relative_to(binaries.parent) for file in files] == [True] * 3
    assert run(binaries / "mmalign", "--version", cwd=empty).strip() == __version__


def test_recipes_are_the_checkouts(binaries: Path, empty: Path) -> None:
    listed = run(binaries / "mmalign", "recipe", "list", cwd=empty).splitlines()[1:]
    assert [line.split()[0] for line in listed] == list(find_recipes())
    for name in ("da_dpo/llava-1.5-7b/train", "accelerate/ddp_8gpu"):
        assert run(binaries / "mmalign", "recipe", "show", name, cwd=empty) == find_recipes()[name].read_text(encoding="utf-8")
    words = ["da_dpo/qwen3-vl-2b/train", "--data", "pairs", "--out", "out", "--print-config"]
    assert "difficulty_mode: paper" in run(binaries / "mmalign", "recipe", "run", *words, cwd=empty)


def test_demo_then_the_data_tools(binaries: Path, empty: Path) -> None:
    mmalign = binaries / "mmalign"
    said = run(mmalign, "demo", "--smoke", cwd=empty)
    assert said.splitlines()[-1].endswith("the page to look at: runs/demo/report.html")
    demo = empty / "runs" / "demo"
    assert "does difficulty-aware DPO hallucinate less?" in (demo / "report.html").read_text()
    # The card's template came along.
    assert "## How to load it" in (demo / "da_dpo" / "README.md").read_text()
    run(mmalign, "data", "convert", "trl", demo / "world" / "pairs", "--out", "converted", cwd=empty)
    run(mmalign, "data", "validate", "converted/pairs", "--out", "report", cwd=empty)
    assert (empty / "report" / "summary.md").is_file()
    for name in ("convert-chats", "sample", "best-of-n", "collect-traces", "search", "weaken", "inject-errors", "coco-objects"):
        assert f"usage: mmalign data {name} " in run(mmalign, "data", name, "--help", cwd=empty)
    assert "usage: curry.py" in run(binaries / "python", "-m", "schedules.curry", "--help", cwd=empty)

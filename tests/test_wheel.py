"""From a wheel, in an empty folder: what the documentation promises works without the checkout."""

import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from mmalign import __version__
from mmalign.recipes import find_recipes
from tests.wheels import PIP, build_wheel, run_outside

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that has the wheel, and sees the packages that it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # The .pth files in there, such as that of an editable mmalign, are not read again.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def test_the_package_is_the_wheels(binaries: Path, empty: Path) -> None:
    code = "import data_tools, mmalign, schedules; print(*(m.__file__ for m in (data_tools, mmalign, schedules)))"
    files = run_outside(binaries / "python", "-c", code, cwd=empty).split()
    assert [Path(file).is_relative_to(binaries.parent) for file in files] == [True] * 3
    assert run_outside(binaries / "mmalign", "--version", cwd=empty).strip() == __version__


def test_recipes_are_the_checkouts(binaries: Path, empty: Path) -> None:
    listed = run_outside(binaries / "mmalign", "recipe", "list", cwd=empty).splitlines()[1:]
    assert [line.split()[0] for line in listed] == list(find_recipes())
    for name in ("da_dpo/llava-1.5-7b/train", "accelerate/ddp_8gpu"):
        assert run_outside(binaries / "mmalign", "recipe", "show", name, cwd=empty) == find_recipes()[name].read_text(encoding="utf-8")
    words = ["da_dpo/qwen3-vl-2b/train", "--data", "pairs", "--out", "out", "--print-config"]
    assert "difficulty_mode: paper" in run_outside(binaries / "mmalign", "recipe", "run", *words, cwd=empty)


def test_demo_then_the_data_tools(binaries: Path, empty: Path) -> None:
    mmalign = binaries / "mmalign"
    said = run_outside(mmalign, "demo", "--smoke", cwd=empty)
    assert said.splitlines()[-1].endswith("the page to look at: runs/demo/report.html")
    demo = empty / "runs" / "demo"
    assert "does difficulty-aware DPO hallucinate less?" in (demo / "report.html").read_text()
    # The card's template came along.
    assert "## How to load it" in (demo / "da_dpo" / "README.md").read_text()
    run_outside(mmalign, "data", "convert", "trl", demo / "world" / "pairs", "--out", "converted", cwd=empty)
    run_outside(mmalign, "data", "validate", "converted/pairs", "--out", "report", cwd=empty)
    assert (empty / "report" / "summary.md").is_file()
    for name in (
        "convert-chats",
        "convert-pictures",
        "sample",
        "best-of-n",
        "collect-traces",
        "search",
        "weaken",
        "inject-errors",
        "coco-objects",
    ):
        assert f"usage: mmalign data {name} " in run_outside(mmalign, "data", name, "--help", cwd=empty)
    assert "usage: curry.py" in run_outside(binaries / "python", "-m", "schedules.curry", "--help", cwd=empty)

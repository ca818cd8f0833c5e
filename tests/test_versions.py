"""The ranges of pyproject.toml: their lower bounds work together, and what is installed here lies within them."""

import importlib.metadata
import subprocess
import tempfile
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import REPOSITORY
from tests.wheels import PIP, build_wheel, run_outside

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = [Requirement(text) for text in PROJECT["dependencies"]]


def lowest(requirement: Requirement) -> str:
    (bound,) = (item.version for item in requirement.specifier if item.operator == ">=")
    return bound


@pytest.mark.parametrize("requirement", DEPENDENCIES, ids=lambda requirement: requirement.name)
def test_what_is_installed_lies_within(requirement: Requirement) -> None:
    assert requirement.specifier.contains(importlib.metadata.version(requirement.name))
    assert lowest(requirement)


@pytest.mark.slow
def test_lower_bounds_work_together() -> None:
    """The wheel in a new environment with the lowest version of each dependency, and the demo there: scoring, training, measuring."""
    # Not in pytest's folder, which is kept: these are several GB.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv")
        binaries = folder / "venv" / "bin"
        install = [*PIP, "--python", str(binaries / "python"), "install"]
        exact = {requirement.name: lowest(requirement) for requirement in DEPENDENCIES}
        if subprocess.run([*install, f"tqdm=={exact['tqdm']}"], check=False, capture_output=True).returncode:
            pytest.skip("no package index is reached")
        subprocess.run([*install, *(f"{name}=={version}" for name, version in exact.items()), str(build_wheel(folder))], check=True)
        code = f"import importlib.metadata as m; print(*(m.version(name) for name in {list(exact)}))"
        found = run_outside(binaries / "python", "-c", code, cwd=folder).split()
        assert all(Requirement(f"x=={version}").specifier.contains(got) for version, got in zip(exact.values(), found, strict=True))
        said = run_outside(binaries / "mmalign", "demo", "--smoke", cwd=folder)
        assert said.splitlines()[-1].endswith("the page to look at: runs/demo/report.html")

"""The rules of the house: imports run downwards, rooms have honest names, the package imports fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmalign

PACKAGE = Path(mmalign.__file__).parent
BELOW = {"losses": set(), "data": {"losses"}, "models": {"losses", "data"}, "engine": {"models", "data", "losses"}}
BELOW |= {
    room: {"engine", "models", "data", "losses"}
    for room in ("methods", "difficulty", "evaluation", "training", "worlds", "reports", "diagnostics")
}
ROOMS = set(BELOW)
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("mmalign.")}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_downwards(module: Path) -> None:
    room = module.parts[0]
    if room in ROOMS:
        assert imported_rooms(PACKAGE / module) <= BELOW[room] | {room}


def test_every_folder_is_a_known_room() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == ROOMS | {"commands"}


def test_no_drawer_for_everything() -> None:
    assert not [module for module in MODULES if module.stem in {"utils", "helpers", "common", "misc"}]


def test_import_is_light() -> None:
    """A second is the promise; what costs it is torch, so its absence is what is tested."""
    code = "import sys, mmalign, mmalign.cli; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

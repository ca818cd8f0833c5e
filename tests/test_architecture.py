"""The rules of the house: imports run downwards, rooms have honest names, the package imports fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmalign

PACKAGE = Path(mmalign.__file__).parent
BELOW = {
    "options": set(),
    "losses": {"options"},
    "data": {"losses", "options", "files"},
    "models": {"losses", "data", "options", "files", "yaml_reader"},
    "engine": {"models", "data", "losses", "options", "files"},
}
BELOW |= {
    room: {"engine", "models", "data", "losses", "options", "files"}
    for room in (
        "methods",
        "classifier",
        "denoisers",
        "difficulty",
        "evaluation",
        "training",
        "worlds",
        "reports",
        "diagnostics",
        "pictures",
    )
}
# A method is the trainer's to call.
BELOW |= {room: BELOW[room] | {"training"} for room in ("methods", "classifier", "denoisers")}
# Methods train on pictures that the tokenizer of a model has read.
BELOW["methods"] = BELOW["methods"] | {"pictures"}
# A report shows metrics as their benchmarks declare them.
BELOW["reports"] = BELOW["reports"] | {"evaluation"}
# A reward reads answers as benchmarks do, and a method that samples asks it.
BELOW["rewards"] = BELOW["evaluation"] | {"evaluation"}
BELOW["methods"] = BELOW["methods"] | {"rewards"}
ROOMS = set(BELOW)
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("mmalign.")} - {"errors", "tables", "held"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_downwards(module: Path) -> None:
    room = module.parts[0]
    if room in ROOMS:
        assert imported_rooms(PACKAGE / module) <= BELOW[room] | {room}


def test_files_stand_at_the_bottom() -> None:
    assert not imported_rooms(PACKAGE / "files.py")


OPTIONAL = {"diffusers", "lmms_eval", "openai", "spacy", "nltk", "open_clip"}
RUNS = [module for module in MODULES if module.parts[0] in ("runs", "options")]


@pytest.mark.parametrize("module", RUNS, ids=str)
def test_imports_stand_at_the_top(module: Path) -> None:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.If))]
    inside = [node for function in functions for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name if isinstance(node, ast.Import) else str(node.module) for node in inside for alias in node.names}
    assert {name.partition(".")[0] for name in names} <= OPTIONAL


def imported_modules(module: Path) -> set[str]:
    """What a module imports of the package when it is imported itself."""
    found = set()
    for node in ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mmalign."):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & NAMES.keys()


NAMES = {"mmalign." + ".".join(module.with_suffix("").parts): module for module in MODULES}


def test_no_module_imports_itself_by_way_of_others() -> None:
    arrows = {name: imported_modules(module) for name, module in NAMES.items()}
    while leaves := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"these import each other: {', '.join(sorted(arrows))}"


def test_every_folder_is_a_known_room() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == ROOMS | {"runs"}


def test_no_drawer_for_everything() -> None:
    assert not [module for module in MODULES if module.stem in {"utils", "helpers", "common", "misc"}]


def test_import_is_light() -> None:
    """A second is the promise; what costs it is torch, so its absence is what is tested."""
    code = "import sys, mmalign, mmalign.cli; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

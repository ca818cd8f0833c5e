"""What holds for all programs outside the package."""

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROGRAMS = sorted(path for folder in ("scripts", "schedules", "data_tools") for path in (REPOSITORY / folder).rglob("*.py"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_none_needs_the_tests(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not {name for name in imported if name.split(".")[0] == "tests"}


@pytest.mark.parametrize("path", [path for path in PROGRAMS if "scripts" in path.parts], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_programs_of_scripts_parse_with_argparse(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert "sys.argv[1]" not in source
    assert "run_program" not in source

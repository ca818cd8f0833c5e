"""The documentation site: builds without a warning, names every option of every command, and names none that isn't there."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.cli import COMMANDS, VARIANTS
from tests.conftest import REPOSITORY

pytest.importorskip("mkdocs", reason="the site's packages are not installed: pip install 'mmalign[docs]'")
EVERY = {**COMMANDS, **{f"{name} {option}": command for name, (option, command) in VARIANTS.items()}}


def write_commands() -> str:
    spec = importlib.util.spec_from_file_location("site_hooks", REPOSITORY / "scripts" / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks.write_commands()


def known_options() -> set[str]:
    return {f"--{field.name.replace('_', '-')}" for command in EVERY.values() for field in dataclasses.fields(command.options_class())}


def test_every_option_of_every_command_is_described() -> None:
    sections = dict(re.findall(r"(?ms)^## mmalign ([^\n]+)\n(.*?)(?=^## |\Z)", write_commands()))
    assert set(sections) == set(EVERY)
    for name, command in EVERY.items():
        for field in dataclasses.fields(command.options_class()):
            row = re.search(rf"(?m)^\| `--{field.name.replace('_', '-')}`[^|]*\|(.*)\|$", sections[name])
            assert row, (name, field.name)
            assert len(row[1].rsplit("|", 1)[-1].strip()) > 5, (name, field.name)


@pytest.mark.parametrize("page", ["coming_from.md", "scaling.md", "publishing.md", "index.md"])
def test_options_that_pages_name_exist(page: str) -> None:
    # Of programs of others, and of studies, that stand on these pages.
    others = {"--config_file", "--nproc-per-node", "--array", "--gpus", "--price", "--help", "--report", "--numbers"}
    text = (REPOSITORY / "docs" / page).read_text()
    theirs = {
        option for first in re.findall(r"(?m)^\| ([^|]*) \|", text) for option in re.findall(r"--\w+", first) if page == "coming_from.md"
    }
    assert set(re.findall(r"--[a-z][a-z_-]+", text)) - theirs - others <= known_options()


def test_links_of_pages_lead_somewhere() -> None:
    """Also those from the README, which is no page of the site."""
    for path in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if not target.startswith(("http", "mailto:")) and not (path.name == "index.md" and target == "commands.md"):
                found = (path.parent / target).exists() or (target == "commands.md" and path.parent.name == "docs")
                assert found, f"{path.name}: {target}"


def test_every_page_is_found_from_the_navigation() -> None:
    named = set(re.findall(r"[\w/]+\.md", (REPOSITORY / ".mkdocs.yml").read_text()))
    pages = {str(path.relative_to(REPOSITORY / "docs")) for path in (REPOSITORY / "docs").rglob("*.md")}
    assert pages <= named


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    words = [
        str(Path(sys.executable).parent / "mkdocs"),
        "build",
        "-f",
        str(REPOSITORY / ".mkdocs.yml"),
        "--strict",
        "-d",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
    for page in ("index.html", "commands/index.html", "api/losses/index.html", "studies/real/index.html"):
        html = (tmp_path / "site" / page).read_text()
        assert not re.search(r'<(?:script|link)[^>]+(?:src|href)="https?://', html.replace("https://squidfunk.github.io", ""))

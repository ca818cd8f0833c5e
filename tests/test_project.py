"""What the project says of itself: its version, how it is cited, and the files that its pages name."""

import re

import yaml

from mmalign import __version__
from mmalign.cli import COMMANDS
from tests.conftest import REPOSITORY


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"], citation["type"]) == (__version__, "Apache-2.0", "software")


def read_tree(page: str) -> set[str]:
    """Paths that a page's tree names: what stands at the margin, and what is indented below it."""
    (tree,) = re.findall(r"^```text\n(.+?)^```", (REPOSITORY / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found, folder = set(), ""
    for indent, names in re.findall(r"^( {0,2})(\S+(?:, \S+)*)(?:  |$)", tree, re.MULTILINE):
        folder = folder if indent else names
        found |= {f"{folder if indent else ''}{name}".rstrip("/") for name in names.split(", ")}
    return found


def test_the_tree_of_readme_is_the_repository() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    named = read_tree("README.md")
    assert packages | {"scripts", "docs", "model_cards"} == named
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 80


def test_the_tree_of_the_code_page_is_the_package() -> None:
    parts = {path.name for path in (REPOSITORY / "mmalign").iterdir() if not path.name.startswith("__")}
    named = read_tree("docs/code.md")
    assert {f"mmalign/{part}" for part in parts} == {name for name in named if name.startswith("mmalign/")}
    assert not {name for name in named if not (REPOSITORY / name).exists()}


def test_the_first_page_names_every_command() -> None:
    table = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8").split("## Commands")[1].split("\n## ")[0]
    named = set()
    for first, *others in (re.findall(r"`([^`]+)`", cell) for cell in re.findall(r"^\| ([^|]*`mmalign [^|]*) \|", table, re.MULTILINE)):
        base = first.removeprefix("mmalign ").removesuffix(" BENCHMARK")
        assert base in COMMANDS
        named |= {base, *others, *(f"{base.split()[0]} {other}" for other in others)}
    assert {name for name in COMMANDS if name not in named and not name.startswith("data ")} == set()


def test_contributing_names_files_that_are_there() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([\w./]+/[\w.]*)`|\]\(([\w./]+)", text) for name in name if name}
    assert len(named) > 15
    assert not {name for name in named if "NAME" not in name and not (REPOSITORY / name).exists()}


def test_contributing_counts_its_files() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"^## ([^\n]+): (\d) files\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 3
    for title, count, body in found:
        assert len(re.findall(r"^\d\. ", body, re.MULTILINE)) == int(count), title


def test_pre_commit_runs_the_targets_of_ci() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    targets = {hook["entry"].removeprefix("make ") for hook in hooks}
    assert targets == {"lint", "types"}
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)

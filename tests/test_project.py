"""What the project says of itself: its version, how it is cited, and the files that its pages name."""

import re

import yaml

from mmalign import __version__
from tests.conftest import REPOSITORY


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"], citation["type"]) == (__version__, "Apache-2.0", "software")


def test_contributing_names_files_that_are_there() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([\w./]+/[\w.]*)`|\]\(([\w./]+)", text) for name in name if name}
    assert len(named) > 15
    assert not {name for name in named if "NAME" not in name and not (REPOSITORY / name).exists()}


def test_contributing_counts_its_files() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for title, count, body in re.findall(r"^## (.+): (\d) files\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL):
        assert len(re.findall(r"^\d\. ", body, re.MULTILINE)) == int(count), title


def test_pre_commit_runs_the_targets_of_ci() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    targets = {hook["entry"].removeprefix("make ") for hook in hooks}
    assert targets == {"lint", "types"}
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)

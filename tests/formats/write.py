"""The page of all forms that are read: ``python -m tests.formats.write`` puts it into docs/formats.md."""

import importlib
import pkgutil
import textwrap
from pathlib import Path

import tests.formats
from tests.formats.form import Form, Section

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
ORDER = ("rows", "images", "answers")
_HEAD = """# What is read

Every form below is an example that the tests read (`tests/formats`); this page is made of them by `python -m tests.formats.write`.
What is refused is refused with the reason: a row goes to `rejects.jsonl` with its id, a file stops the command.
"""


def read_sections() -> list[Section]:
    """Collect the sections of this folder's modules, in the page's order."""
    present = {module.name for module in pkgutil.iter_modules(tests.formats.__path__)}
    modules = [importlib.import_module(f"tests.formats.{name}") for name in ORDER if name in present]
    return [section for module in modules for section in module.SECTIONS]


def write_page() -> str:
    """Lay the sections out."""
    lines = [_HEAD]
    for section in read_sections():
        lines += [f"## {section.title}", "", _wrap(section.text), ""]
        for form in section.forms:
            lines += [f"### {form.title}{' (refused)' if form.refused else ''}", "", *_example(form), ""]
            if form.refused:
                lines += [f"Refused: `{form.refused}`.", ""]
            if form.note:
                lines += [_wrap(form.note), ""]
    return "\n".join(lines).rstrip() + "\n"


def _wrap(text: str) -> str:
    return "\n".join(textwrap.fill(line, 128, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))


def _example(form: Form) -> list[str]:
    language = {"json": "json", "jsonl": "json"}.get(form.file.rpartition(".")[2], "text")
    return [f"`{form.file}`", "", f"```{language}", form.text.rstrip("\n"), "```"]


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")

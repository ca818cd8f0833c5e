"""Every form that docs/formats.md shows is read, or refused, as the page says."""

import re
from pathlib import Path

import pytest

from tests.formats.form import Form
from tests.formats.write import PAGE, read_sections, write_page

FORMS = [pytest.param(form, id=f"{section.title}: {form.title}") for section in read_sections() for form in section.forms]


@pytest.mark.parametrize("form", FORMS)
def test_form(form: Form, tmp_path: Path) -> None:
    for name, data in form.beside.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    path = tmp_path / form.file
    path.parent.mkdir(parents=True, exist_ok=True)
    # A JSON Lines example may be broken into several lines to be read more easily.
    text = " ".join(form.text.split("\n")) if path.suffix == ".jsonl" and not _has_many_rows(form.text) else form.text
    path.write_text(text, encoding="utf-8")
    if not form.refused:
        assert form.read(path) == form.expected
        return
    with pytest.raises(ValueError, match=re.escape(form.refused)):
        form.read(path)


def _has_many_rows(text: str) -> bool:
    return all(line.startswith("{") and line.endswith("}") for line in text.splitlines())


def test_the_page_shows_the_forms() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_page(), "run python -m tests.formats.write"

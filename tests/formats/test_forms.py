"""Every form that docs/formats.md shows is read, or refused, as the page says."""

import re
from pathlib import Path

import pytest

from tests.formats.form import Form, save_form
from tests.formats.write import PAGE, read_sections, write_page

FORMS = [pytest.param(form, id=f"{section.title}: {form.title}") for section in read_sections() for form in section.forms]


@pytest.mark.parametrize("form", FORMS)
def test_form(form: Form, tmp_path: Path) -> None:
    path = save_form(form, tmp_path)
    if not form.refused:
        assert form.read(path) == form.expected
        return
    with pytest.raises(ValueError, match=re.escape(form.refused)):
        form.read(path)


def test_the_page_shows_the_forms() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_page(), "run python -m tests.formats.write"

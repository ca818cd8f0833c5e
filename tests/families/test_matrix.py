"""Every family does what the support table says, or says why not; and the table is what is tested."""

import re

import pytest

from tests.families.matrix import BEGIN, CELLS, END, PAGE, REFUSED, Family, build, table
from tests.tiny_families import FAMILIES


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build(request.param, tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("cell", CELLS)
def test_family(family: Family, cell: str) -> None:
    reason = REFUSED.get((family.name, cell))
    if reason is None:
        CELLS[cell](family)
        return
    with pytest.raises(ValueError, match=re.escape(reason)):
        CELLS[cell](family)


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip() == table(), "run python -m tests.families.matrix --write"

"""Rows of pictures as Parquet: written some at a time, as the data set may be larger than memory."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Value

from data_tools.picture_rows import write_picture_rows
from mmalign.data.datasets import load_rows


def test_rows_are_on_disk_before_the_last_one_is_made(tmp_path: Path) -> None:
    """Also where the first of them have null in a column."""
    generator = random.Random(0)
    rows = [
        {"caption": f"c{i}", "image": {"bytes": generator.randbytes(10_000), "path": None}, "note": None if i < 150 else "late"}
        for i in range(230)
    ]

    def make() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows):
            if number == 220:
                (partial,) = tmp_path.glob("*.partial")
                assert partial.stat().st_size > 200 * 10_000
            yield row

    assert write_picture_rows(tmp_path / "rows.parquet", make(), features={"note": Value("string")}) == 230
    assert list(load_rows(tmp_path / "rows.parquet")) == rows

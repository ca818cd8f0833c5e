"""Photographs that the scorers of sampled responses look at."""

from pathlib import Path

import pytest

from tests.tiny_models import random_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 0.png to 2.png."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        random_image(number).save(folder / f"{number}.png")
    return folder

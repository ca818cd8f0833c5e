"""Heat maps: a readable PNG, and shapes that don't fit are named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.reports.heat_map import save_heat_map

NAMES = {"rows": ["a", "b"], "columns": ["x", "y", "z"], "title": "t", "row_label": "r", "column_label": "c"}


def test_colours_follow_the_values(tmp_path: Path) -> None:
    """Centred at 0: a gain is red, a loss blue, and a cell without a value white."""
    save_heat_map(tmp_path / "map.png", [[5.0, -5.0, None], [0.0, 2.0, -2.0]], centre=0.0, **NAMES)
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    red = (pixels[..., 0] > pixels[..., 2] + 60).sum()
    blue = (pixels[..., 2] > pixels[..., 0] + 60).sum()
    assert red > 1000
    assert blue > 1000


def test_shapes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"values have \[3\] columns per row; expected 2 rows of 3"):
        save_heat_map(tmp_path / "map.png", [[1.0, 2.0, 3.0]], **NAMES)
    with pytest.raises(ValueError, match=r"needs at least one value"):
        save_heat_map(tmp_path / "map.png", [[None] * 3, [None] * 3], **NAMES)

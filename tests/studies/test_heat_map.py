"""Heat maps: a gain is red, a loss blue."""

from pathlib import Path

import numpy as np
from PIL import Image

from scripts.studies.heat_map import save_heat_map


def test_colours_follow_the_values(tmp_path: Path) -> None:
    """Centred at 0: a gain is red, a loss blue, and a cell without a value white."""
    values = [[5.0, -5.0, None], [0.0, 2.0, -2.0]]
    save_heat_map(tmp_path / "map.png", values, rows=["a", "b"], columns=["x", "y", "z"], centre=0.0, title="t", xlabel="c", ylabel="r")
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    red = (pixels[..., 0] > pixels[..., 2] + 60).sum()
    blue = (pixels[..., 2] > pixels[..., 0] + 60).sum()
    assert red > 1000
    assert blue > 1000

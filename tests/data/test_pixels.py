"""What a processor made of an image can be looked at: four coloured quarters stay where they are, in every family."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.data.encode import encode_responses
from mmalign.data.pixels import processed_pictures
from tests.tiny_families import FAMILIES

COLOURS = {(0, 0): (220, 40, 40), (0, 1): (40, 200, 60), (1, 0): (50, 60, 220), (1, 1): (230, 220, 60)}


def quarters(width: int, height: int) -> Image.Image:
    """An image of four colours."""
    image = Image.new("RGB", (width, height))
    for (row, column), colour in COLOURS.items():
        image.paste(colour, (column * width // 2, row * height // 2, (column + 1) * width // 2, (row + 1) * height // 2))
    return image


def shows_quarters(picture: Image.Image) -> bool:
    """Whether the middle of each quarter has its colour."""
    pixels = np.asarray(picture).astype(int)
    height, width = pixels.shape[:2]
    found = {place: pixels[(2 * place[0] + 1) * height // 4, (2 * place[1] + 1) * width // 4] for place in COLOURS}
    return all(np.abs(found[place] - colour).max() <= 12 for place, colour in COLOURS.items())


@pytest.mark.parametrize("name", list(FAMILIES))
def test_colours_stay_where_they_are(name: str) -> None:
    _, processor = FAMILIES[name]()
    encoded = encode_responses(
        processor,
        images=[quarters(56, 56)],
        prompt=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        responses=["a cat"],
    )
    pictures = processed_pictures(processor.image_processor, encoded.images)
    # Where an image is cut into tiles, one of the pictures is the whole.
    assert any(map(shows_quarters, pictures)), [picture.size for picture in pictures]


def test_unknown_forms_are_not_shown() -> None:
    assert processed_pictures(None, {}) == []
    assert processed_pictures(None, {"pixel_values": torch.ones(4, 3)}) == []

"""A saved Janus and captions with pictures."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, List
from datasets import Image as ImageFeature
from torch import Tensor

from mmalign.data.pictures import encode_caption, leave_caption_out
from mmalign.engine.choosing import Greedy
from mmalign.engine.drawing import draw_pictures
from mmalign.models.picture_tokens import find_picture_tokens
from tests.tiny_families import janus
from tests.tiny_models import random_image, random_text


@pytest.fixture(scope="session")
def janus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "janus"
    model, processor = janus()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture_pairs(count: int) -> list[dict[str, Any]]:
    """Captions of different length with two pictures each, and scores for those who ask."""
    return [
        {
            "id": f"drawing-{i}",
            "caption": random_text(i, 2 + i % 3),
            "image_chosen": random_image(2 * i),
            "image_rejected": random_image(2 * i + 1, (20, 20)),
            "score_chosen": 0.9,
            "score_rejected": 0.1 * (i % 5),
        }
        for i in range(count)
    ]


def picture_lists(count: int) -> list[dict[str, Any]]:
    """Captions with three scored pictures, or two."""
    rows = []
    for i in range(count):
        number = 3 - i % 2
        pictures = [random_image(50 + 4 * i + k) for k in range(number)]
        scores = [0.2, 0.9, 0.4][:number]
        rows.append({"caption": random_text(i, 3), "images_responses": pictures, "scores": scores})
    return rows


def save_pictures(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write parquet with embedded pictures."""
    data = Dataset.from_list(rows)
    for name in data.column_names:
        if name.startswith("images"):
            data = data.cast_column(name, List(ImageFeature()))
        elif name.startswith("image"):
            data = data.cast_column(name, ImageFeature())
    data.to_parquet(str(path))
    return path


@pytest.fixture(scope="session")
def drawn_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pairs") / "pairs.parquet", picture_pairs(8))


def draw_captions(built: tuple[Any, Any], captions: list[str], *, side: int | None = None, **options: Any) -> Tensor:
    """Codes of a picture of each caption, the likeliest if not said otherwise."""
    model, processor = built
    pictures = find_picture_tokens(model, side=side)
    own = {"decoding": Greedy(), "seeds": range(len(captions)), **options}
    ids = [encode_caption(processor, caption, pictures) for caption in captions]
    without = [leave_caption_out(processor, one, pictures) for one in ids]
    return draw_pictures(model, pictures, ids, without=without, pad_token_id=0, **own)

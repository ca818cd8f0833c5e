"""Every command's reader of images gives the same pixels of the same odd file."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.leaks import index_images
from mmalign.classifier.image_cache import cache_images, to_square
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.data.encode import encode_responses
from mmalign.data.rejects import Rejects
from mmalign.data.rows import read_chat, read_list, read_pair
from mmalign.evaluation.answers import Question
from mmalign.evaluation.harness.benchmark_task import BenchmarkTask
from mmalign.evaluation.runner import _load_images
from mmalign.methods.contrastive import ContrastiveMethod
from mmalign.worlds.render import draw_mosaic
from mmalign.worlds.scenes import Item, Scene
from tests.odd_images import encode, odd_images
from tests.tiny_models import build_tiny_llava

ODD = odd_images()
ROOT = Path(__file__).parents[2]


def row_reader(read: Callable[..., object], **columns: object) -> Callable[[Path], Image.Image]:
    """A reader of rows, as training and scoring have it."""
    return lambda path: read({"images": [path.name], **columns}, index=0, image_root=path.parent).images[0]  # type: ignore[attr-defined]


def evaluate(path: Path) -> Image.Image:
    good, images = _load_images([Question("q", path.name, "what")], path.parent, Rejects(path.parent / "r.jsonl", max_share=0.0))
    assert len(good) == 1
    return images[path.name]


READERS: dict[str, Callable[[Path], Image.Image]] = {
    "pairs": row_reader(read_pair, prompt="what", chosen="a", rejected="b"),
    "lists": row_reader(read_list, prompt="what", responses=["a", "b"], scores=[0, 1]),
    "chats": row_reader(read_chat, messages=[{"role": "user", "content": "what"}, {"role": "assistant", "content": "a"}]),
    "contrastive": lambda path: ContrastiveMethod(None, max_length=8, image_root=path.parent)._read({"images": [path.name], "text": "a"})[
        0
    ],
    "evaluation": evaluate,
    "harness": lambda path: BenchmarkTask("pope", "").doc_to_visual({"image": str(path)})[0],
}


@pytest.mark.parametrize("reader", list(READERS))
def test_readers_of_rows_and_questions(reader: str, tmp_path: Path) -> None:
    for number, (data, expected) in enumerate(ODD.values()):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        assert np.array_equal(np.asarray(READERS[reader](path)), expected)


def test_classifier(tmp_path: Path) -> None:
    for number, (data, _) in enumerate(ODD.values()):
        for name in ("a", "b"):
            path = tmp_path / "data" / name / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    rejects = Rejects(tmp_path / "rejects.jsonl", max_share=0.0)
    found = cache_images(load_labeled_images(tmp_path / "data"), tmp_path / "cache", side=8, rejects=rejects)
    expected = [to_square(Image.fromarray(np.ascontiguousarray(pixels)), 8) for _, pixels in ODD.values()]
    assert np.array_equal(found.pixels, np.stack(expected * 2))


def test_worlds_of_photographs() -> None:
    scene, size = Scene((Item(0, None, 0),)), 16
    for data, expected in ODD.values():
        mosaic = draw_mosaic(scene, np.random.default_rng(0), size, {0: [data]})
        quarter = Image.fromarray(np.ascontiguousarray(expected)).resize((8, 8))
        assert np.array_equal(np.asarray(mosaic)[:8, :8], np.asarray(quarter))


def test_leaks_are_found_whatever_the_file_is_like(tmp_path: Path) -> None:
    """A benchmark's image that lies on its side in a JPEG is the training image that stands."""
    data, expected = ODD["tag 6 in PNG"]
    (tmp_path / "phone.png").write_bytes(data)
    upright = Image.fromarray(expected)
    (found,) = index_images([tmp_path]).find("0" * 64, upright, max_distance=0)
    assert found == {"benchmark_image": str(tmp_path / "phone.png"), "kind": "perceptual", "distance": 0}


def test_a_model_gets_the_tensor_of_the_plain_picture() -> None:
    """From reading to the image processor's output, with a stock processor."""
    _, processor = build_tiny_llava()

    def pixels(data: bytes) -> torch.Tensor:
        row = read_pair({"images": [{"bytes": data, "path": None}], "prompt": "what", "chosen": "a", "rejected": "b"}, index=0)
        return encode_responses(processor, images=row.images, prompt=row.prompt, responses=["a", "b"]).images["pixel_values"]

    for data, expected in ODD.values():
        plain = processor.image_processor(images=[Image.fromarray(np.ascontiguousarray(expected))], return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels(data), plain)
        assert torch.equal(pixels(encode(Image.fromarray(np.ascontiguousarray(expected)))), plain)


def test_nobody_else_opens_images() -> None:
    """A second decoder would be a second opinion. Headers alone are read in one place."""
    opened = re.compile(r"\bImage\.open\(|\.convert\(\"RGB\"\)")
    places = {
        str(path.relative_to(ROOT))
        for folder in ("mmalign", "data_tools")
        for path in (ROOT / folder).rglob("*.py")
        if opened.search(path.read_text(encoding="utf-8"))
    }
    assert places == {"mmalign/data/images.py", "data_tools/image_hashes.py"}

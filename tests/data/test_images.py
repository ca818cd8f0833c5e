"""Images of rows: what decodes, and the message of what doesn't."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import Image as DatasetImage
from PIL import Image, ImageOps
from transformers.image_utils import load_image as stock_load_image

from mmalign.data import images
from mmalign.data.images import digest_images, load_image
from tests.odd_images import blocks, encode, odd_images, tagged
from tests.tiny_models import random_image

ODD = odd_images()


def png(size: tuple[int, int] = (40, 32)) -> bytes:
    buffer = io.BytesIO()
    random_image(0, size).save(buffer, format="PNG")
    return buffer.getvalue()


def test_every_form_gives_the_same_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    expected = random_image(0).tobytes()
    forms = [png(), {"bytes": png(), "path": None}, {"bytes": None, "path": "a.png"}, "a.png", Path("a.png"), random_image(0)]
    for value in forms:
        image = load_image(value, root=tmp_path)
        assert image.mode == "RGB"
        assert image.tobytes() == expected


@pytest.mark.parametrize("name", list(ODD))
def test_odd_files_show_what_they_show(name: str, tmp_path: Path) -> None:
    data, expected = ODD[name]
    (tmp_path / "a").write_bytes(data)
    for value in (data, {"bytes": data, "path": None}, "a", Image.open(io.BytesIO(data))):
        found = load_image(value, root=tmp_path)
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found), expected)
        # Whoever gets the decoded picture may decode it once more.
        assert np.array_equal(np.asarray(load_image(found)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_datasets_and_transformers(kind: str, orientation: int, tmp_path: Path) -> None:
    data = tagged(orientation, kind)
    (tmp_path / "a").write_bytes(data)
    theirs = DatasetImage().decode_example({"bytes": data, "path": None}).convert("RGB")
    found = load_image(data)
    assert np.array_equal(np.asarray(found), np.asarray(theirs))
    assert np.array_equal(np.asarray(found), np.asarray(stock_load_image(str(tmp_path / "a"))))
    # A picture that was converted and still holds its tag.
    assert np.array_equal(np.asarray(load_image(Image.open(io.BytesIO(data)).convert("RGB"))), np.asarray(found))


def test_a_picture_that_was_turned_already_is_left_alone() -> None:
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(tagged(6))))
    assert np.array_equal(np.asarray(load_image(turned)), np.asarray(turned))


def test_tags_that_cannot_be_read_cost_no_picture() -> None:
    image = Image.fromarray(blocks())
    image.info["exif"] = b"Exif\0\0no tags"
    assert np.array_equal(np.asarray(load_image(image)), blocks())


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_premultiplied_and_palette_alpha(mode: str) -> None:
    assert load_image(Image.new(mode, (2, 1))).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_is_half_white() -> None:
    assert load_image(Image.new("RGBA", (1, 1), (0, 100, 200, 128))).getpixel((0, 0)) == (127, 177, 227)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], dtype=np.uint16), [0, 1, 255]),
        (np.array([[0, 128, 129]], dtype=np.uint16), [0, 0, 1]),
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 256, 65535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 65536, 131072]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 1, 2]], dtype=np.float32), [0, 1, 2]),
        (np.array([[0, 257, 1000]], dtype=np.float32), [0, 1, 4]),
        (np.array([[-1, 0, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[7, 7, 7]], dtype=np.int32), [7, 7, 7]),
        (np.array([[-7, -7, -7]], dtype=np.int32), [0, 0, 0]),
    ],
)
def test_wide_values_are_scaled_by_rule(values: np.ndarray, expected: list[int]) -> None:
    assert np.asarray(load_image(Image.fromarray(values)))[0, :, 0].tolist() == expected


def test_what_no_rule_shows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image can't be shown as RGB \(mode F\): it holds values that are not finite"):
        load_image(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)))


def test_digest_is_of_pixels_and_places(tmp_path: Path) -> None:
    """One picture by path, as bytes, decoded, and as another lossless file has one digest, and no other."""
    (tmp_path / "a.png").write_bytes(png())
    image = random_image(0)
    ways = ["a.png", png(), image, encode(image, "TIFF"), encode(image, "BMP")]
    (digest,) = {digest_images([load_image(way, root=tmp_path)]) for way in ways}
    assert len(digest) == 16
    changed = image.copy()
    changed.putpixel((3, 5), (0, 0, 1))
    other = random_image(1)
    others = [
        [changed],
        [image.transpose(Image.Transpose.TRANSPOSE)],
        [image, image],
        [image, other],
        [other, image],
        [image.resize((20, 20))],
    ]
    assert len({digest, *map(digest_images, others)}) == 1 + len(others)
    assert digest_images([]) == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("missing.png", "image not found: .*missing.png"),
        ("../secret.png", r"image path '../secret.png' leaves the image root"),
        ("/etc/hostname", "leaves the image root"),
        (b"not an image", "image bytes is not an image that Pillow can read"),
        (png()[:200], "image bytes is truncated or damaged"),
        ({"bytes": None, "path": None}, "image is a dict without bytes and path"),
        (3, "image is a int; expected a PIL image, bytes, a path or a dict"),
    ],
)
def test_broken_images_are_named(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(value, root=tmp_path)


def test_truncated_jpeg_is_refused() -> None:
    buffer = io.BytesIO()
    random_image(1, (64, 64)).save(buffer, format="JPEG")
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_image(buffer.getvalue()[:-200])


def test_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside.png").write_bytes(png())
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ValueError, match="leaves the image root"):
        load_image("link.png", root=tmp_path / "root")


def test_path_without_a_root_is_refused() -> None:
    with pytest.raises(ValueError, match="'a.png' is relative; pass the folder it starts from as --image-root"):
        load_image("a.png")


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="more than 1,000 pixels and is refused as a decompression bomb"):
        load_image(png())


def test_pillows_own_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="refused as a decompression bomb"):
        load_image(png())

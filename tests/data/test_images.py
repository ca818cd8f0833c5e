"""Images of rows: what decodes, and the message of what doesn't."""

import io
from pathlib import Path

import pytest
from PIL import Image

from mmalign.data import images
from mmalign.data.images import load_image
from tests.tiny_models import random_image


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


def test_grey_and_transparent_images_become_rgb() -> None:
    assert load_image(Image.new("L", (2, 2), 7)).getpixel((0, 0)) == (7, 7, 7)
    assert load_image(Image.new("RGBA", (2, 2), (1, 2, 3, 0))).getpixel((0, 0)) == (1, 2, 3)


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

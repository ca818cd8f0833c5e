"""Files of images that are no plain 8-bit RGB, each with the pixels that it shows, worked out without mmalign's decoder."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
ORIENTATION = 0x0112
# What numpy does to the stored pixels (H, W, ...) for each value of the tag, by the EXIF standard: where row 0 and column 0 lie.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],  # top right
    3: lambda a: a[::-1, ::-1],  # bottom right
    4: lambda a: a[::-1],  # bottom left
    5: lambda a: a.swapaxes(0, 1),  # left top
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],  # right top
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],  # right bottom
    8: lambda a: a.swapaxes(0, 1)[::-1],  # left bottom
}
SIDE = 12


def blocks(width: int = 12, height: int = 8) -> Pixels:
    """(H, W, 3) of coarse colour, different in every corner."""
    small = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return np.kron(small, np.ones((4, 4, 1), dtype=np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Save to bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tagged(orientation: int, kind: str = "PNG", **options: Any) -> bytes:
    """A file whose pixels lie as a camera held on its side stores them."""
    tag = Image.Exif()
    tag[ORIENTATION] = orientation
    return encode(Image.fromarray(blocks()), kind, exif=tag, **options)


def grey(values: Pixels) -> Pixels:
    """(H, W) to (H, W, 3)."""
    return np.repeat(values[..., None], 3, axis=2)


def on_white(colour: Pixels, alpha: NDArray[np.float64]) -> Pixels:
    """Blend (H, W, 3) over white."""
    return np.rint(colour * alpha[..., None] + 255 * (1 - alpha[..., None])).astype(np.uint8)


def odd_images() -> dict[str, tuple[bytes, Pixels]]:
    """Every kind, by name; lossless, so that pixels can be equal."""
    colour, light = blocks(), blocks()[..., 0]
    wide = light.astype(np.uint16) * 257
    steps = np.where(np.arange(96).reshape(8, 12) % 2 == 0, 0.0, 1.0)
    alpha = (255 * steps).astype(np.uint8)
    rgba = np.dstack([colour, alpha])
    palette = Image.fromarray(colour).quantize(8)
    shown = np.asarray(palette.convert("RGB"))
    clear = int(np.asarray(palette)[0, 0])
    found = {f"tag {value} in PNG": (tagged(value), np.ascontiguousarray(TURNED[value](colour))) for value in TURNED}
    found |= {f"tag {value} in TIFF": (tagged(value, "TIFF"), np.ascontiguousarray(TURNED[value](colour))) for value in TURNED}
    found |= {f"tag {value} in WebP": (tagged(value, "WEBP", lossless=True), TURNED[value](colour)) for value in (3, 6, 8)}
    found |= {
        "RGBA": (encode(Image.fromarray(rgba)), on_white(colour, steps)),
        "LA": (encode(Image.merge("LA", [Image.fromarray(light), Image.fromarray(alpha)])), on_white(grey(light), steps)),
        "palette with transparency": (
            encode(palette, transparency=clear),
            np.where((np.asarray(palette) == clear)[..., None], 255, shown).astype(np.uint8),
        ),
        "GIF with transparency": (
            encode(palette, "GIF", transparency=clear),
            np.where((np.asarray(palette) == clear)[..., None], 255, shown).astype(np.uint8),
        ),
        "RGB with one transparent colour": (
            encode(Image.fromarray(colour), transparency=tuple(int(v) for v in colour[0, 0])),
            np.where((colour == colour[0, 0]).all(-1, keepdims=True), 255, colour).astype(np.uint8),
        ),
        "16-bit PNG": (encode(Image.fromarray(wide)), grey(light)),
        "16-bit PNG with a transparent value": (
            encode(Image.fromarray(wide), transparency=int(wide[0, 0])),
            np.where((wide == wide[0, 0])[..., None], 255, grey(light)).astype(np.uint8),
        ),
        "16-bit TIFF, big-endian": (encode(Image.fromarray(wide.astype(">u2")), "TIFF"), grey(light)),
        "32-bit TIFF of 16-bit values": (encode(Image.fromarray(wide.astype(np.int32)), "TIFF"), grey(light)),
        "32-bit TIFF of 8-bit values": (encode(Image.fromarray(light.astype(np.int32)), "TIFF"), grey(light)),
        "float TIFF in [0, 1]": (encode(Image.fromarray(light.astype(np.float32) / 255), "TIFF"), grey(light)),
        "float TIFF in [0, 255]": (encode(Image.fromarray(light.astype(np.float32)), "TIFF"), grey(light)),
        "1 bit": (encode(Image.fromarray(light > 127)), grey(np.where(light > 127, 255, 0).astype(np.uint8))),
        "8-bit grey": (encode(Image.fromarray(light)), grey(light)),
        "CMYK TIFF": (encode(Image.fromarray(255 - colour).convert("CMYK"), "TIFF"), 255 - colour),
        "animated GIF": (
            encode(Image.fromarray(light), "GIF", save_all=True, append_images=[Image.fromarray(255 - light)]),
            grey(light),
        ),
        "animated PNG": (
            encode(Image.fromarray(colour), save_all=True, append_images=[Image.fromarray(255 - colour)]),
            colour,
        ),
        "16-bit PGM": (b"P5 12 8 65535\n" + wide.astype(">u2").tobytes(), grey(light)),
    }
    return found

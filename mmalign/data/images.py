"""Images from rows of data: decoded to RGB, held inside the image root, refused when they are bombs."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

# Pillow's own limit warns at this size and errors at twice it; training data has no use for either.
MAX_PIXELS = 89_478_485
# Pictures alone: Pillow also hands PostScript to Ghostscript, and opens containers that no data set holds pictures in.
Image.init()
FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000") if name in Image.OPEN)
# What damaged files make Pillow's decoders raise, beside what they say of themselves. Its memory is bounded by MAX_PIXELS.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, TypeError, struct.error, zlib.error)


def load_image(value: Any, *, root: Path | None = None) -> Image.Image:
    """Decode one image of a data row to RGB.

    Args:
        value: A PIL image, a ``datasets`` dict with ``bytes`` or ``path``, raw bytes, or a path.
        root: Folder that relative paths start from. Paths may not leave it.

    Returns:
        A fully decoded RGB image.

    Raises:
        ValueError: If the file is missing, truncated, not an image, too large, or outside ``root``.
    """
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            value = value["bytes"]
        elif value.get("path"):
            value = value["path"]
        else:
            raise ValueError("image is a dict without bytes and path")
    if isinstance(value, Image.Image):
        return _decode(value, name="image")
    if isinstance(value, bytes):
        return _open(io.BytesIO(value), name="image bytes")
    if isinstance(value, (str, Path)):
        path = resolve_image_path(value, root=root)
        try:
            found = path.is_file()
        except OSError as error:
            raise ValueError(f"image path {str(value)[:200]!r} can't be looked up: {error.strerror}") from error
        if not found:
            raise ValueError(f"image not found: {path}")
        return _open(path, name=str(path))
    raise ValueError(f"image is a {type(value).__name__}; expected a PIL image, bytes, a path or a dict with one of them")


def resolve_image_path(value: str | Path, *, root: Path | None) -> Path:
    """Join a path of a data row to its root, and refuse one that leads out of it."""
    if root is None:
        if not Path(value).is_absolute():
            raise ValueError(f"image path {str(value)!r} is relative; pass the folder it starts from as --image-root")
        raise ValueError(f"image path {str(value)!r} is absolute; pass the folder that holds the images as --image-root")
    path = (root / value).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"image path {str(value)!r} leaves the image root {root}")
    return path


def _open(source: Path | io.BytesIO, *, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Only the size warning: Pillow also warns of harmless metadata, which is no reason to drop an image.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that Pillow can read{_looks_like(source)}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels and is refused as a decompression bomb") from error
    except _DAMAGE as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    with image:
        return _decode(image, name=name)


def _decode(image: Image.Image, *, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels and is refused as a decompression bomb")
    try:
        return image.convert("RGB")
    except _DAMAGE as error:
        raise ValueError(f"{name} is truncated or damaged: {error}") from error


def _looks_like(source: Path | io.BytesIO) -> str:
    """Say what a file that is no picture begins with, where that tells: a page saved under a picture's name is common."""
    try:
        head = source.getvalue()[:256] if isinstance(source, io.BytesIO) else _read_head(source)
    except OSError:
        return ""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kinds = {b"<svg": "SVG", b"<?xml": "XML or SVG", b"<!doctype html": "an HTML page", b"<html": "an HTML page", b"%pdf": "PDF"}
    kinds |= {b"%!ps": "PostScript", b"pk\x03\x04": "a zip archive", b"\x1f\x8b": "gzip"}
    return next((f"; it looks like {kind}" for start, kind in kinds.items() if text.startswith(start)), "")


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(256)

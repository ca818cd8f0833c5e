"""Images from rows of data: decoded to RGB, held inside the image root, refused when they are bombs."""

import io
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

# Pillow's own limit warns at this size and errors at twice it; training data has no use for either.
MAX_PIXELS = 89_478_485


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
            image = Image.open(source)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that Pillow can read") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels and is refused as a decompression bomb") from error
    with image:
        return _decode(image, name=name)


def _decode(image: Image.Image, *, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{name} has more than {MAX_PIXELS:,} pixels and is refused as a decompression bomb")
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is truncated or damaged: {error}") from error

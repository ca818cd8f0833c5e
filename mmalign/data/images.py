"""Images from rows of data: decoded to RGB, held inside the image root, refused when they are bombs.

Everything that reads an image goes through ``load_image``, so that training, scoring, evaluation and classifiers see the same pixels.
"""

import base64
import binascii
import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import xxhash
from PIL import Image, UnidentifiedImageError

from mmalign.errors import UserError

# Pillow's own limit warns at this size and errors at twice it; training data has no use for either.
MAX_PIXELS = 89_478_485
# Pictures alone: Pillow also hands PostScript to Ghostscript, and opens containers that no data set holds pictures in.
Image.init()
FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000") if name in Image.OPEN)
# A camera's .mpo is a JPEG with more pictures behind the first, and read as one.
SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
IMAGE_KEYS = ("bytes", "image", "image_url", "url", "path", "base64")
"""What a mapping holds its picture under: of ``datasets``, of messages in parts, of OpenAI's."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
# JPEG, PNG, WebP and GIF begin so.
_BASE64_PICTURE = re.compile(r"(?:/9j/|iVBORw0KGgo|UklGR|R0lGOD)[A-Za-z0-9+/\s]{50,}=*\s*")
# How to turn pixels upright, by the EXIF tag that a camera writes.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

FileState = tuple[int, int] | None
"""Size of a file in bytes and time of its last change in ns; None where there is none."""
_NOTED: ContextVar[dict[str, FileState] | None] = ContextVar("_NOTED", default=None)


@contextlib.contextmanager
def noted_files() -> Iterator[dict[str, FileState]]:
    """Note which image files are looked for inside the block, and how they are just before."""
    noted: dict[str, FileState] = {}
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def find_state(path: str | Path) -> FileState:
    """Tell how a file is now."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def load_image(value: Any, *, root: Path | None = None) -> Image.Image:
    """Decode one image of a data row to RGB: upright, on white, 8 bits a channel.

    The first frame of an animation is taken. An orientation tag is applied. What is transparent shows white. 16-bit values are divided
    by 257. Values of 32 bits and floats are divided by the smallest of 1 (floats alone), 255 and 65535 that none of them exceeds, to
    255; where one is negative or above 65535, the image's own range is stretched to 0 to 255.

    Args:
        value: A PIL image, raw bytes, a path, a ``file:`` address, a data URI, base64, or a mapping with one of them under one of
            ``IMAGE_KEYS``; beside bytes, a path is their name.
        root: Folder that relative paths start from. Paths may not leave it.

    Returns:
        A fully decoded RGB image without metadata.

    Raises:
        ValueError: If the file is missing, truncated, not an image, too large, or outside ``root``, or would have to be fetched.
    """
    value = find_image(value)
    if isinstance(value, Image.Image):
        return _decode(value, name="image")
    if isinstance(value, bytes):
        return _open(io.BytesIO(value), name="image bytes")
    if isinstance(value, (str, Path)):
        path = resolve_image_path(value, root=root)
        try:
            found = path.is_file()
        except OSError as error:
            raise UserError(f"image path {str(value)[:200]!r} can't be looked up: {error.strerror}") from error
        if not found:
            raise UserError(f"image not found: {path}")
        return _open(path, name=str(path))
    raise UserError(f"image is a {type(value).__name__}; expected a PIL image, bytes, a path or a dict with one of them")


def find_image(value: Any) -> Any:
    """Find what ``load_image`` decodes: bytes, a path, or an image.

    Raises:
        ValueError: If it would have to be fetched, or its base64 text is damaged.
    """
    if isinstance(value, Mapping):
        key = next((key for key in IMAGE_KEYS if value.get(key) is not None and not (isinstance(value[key], str) and not value[key])), None)
        if key is None:
            raise UserError("image is a dict without bytes and path")
        return _from_base64(value[key]) if key in ("bytes", "base64") and isinstance(value[key], str) else find_image(value[key])
    if not isinstance(value, str):
        return value
    found = _SCHEME.match(value)
    scheme = found.group(1).lower() if found else ""
    if scheme == "data":
        head, _, body = value.partition(",")
        return _from_base64(body) if head.lower().endswith(";base64") else unquote_to_bytes(body)
    if scheme == "file":
        # Without a third slash a relative path.
        path = value.partition(":")[2]
        return unquote(path.removeprefix("//localhost") if path.startswith("//localhost/") else path.removeprefix("//"))
    if scheme in ("http", "https") or (scheme and value[len(scheme) :].startswith("://")):
        raise UserError(f"image {value[:200]!r} is an address, and images are not fetched: download it and name the file")
    return _from_base64(value) if _BASE64_PICTURE.fullmatch(value) else value


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"an image's base64 text is damaged: {error}") from error


def resolve_image_path(value: str | Path, *, root: Path | None) -> Path:
    """Join a path of a data row to its root, and refuse one that leads out of it."""
    if not str(value).strip():
        raise UserError("image path is empty; a row without an image has null there, or no such column")
    if "\0" in str(value):
        raise UserError(f"image path {str(value)[:200]!r} holds a zero byte, which no path can")
    if root is None:
        if not Path(value).is_absolute():
            raise UserError(f"image path {str(value)!r} is relative; pass the folder it starts from as --image-root")
        raise UserError(f"image path {str(value)!r} is absolute; pass the folder that holds the images as --image-root")
    if (noted := _NOTED.get()) is not None:
        place = (root / value).absolute()
        noted[str(place)] = find_state(place)
    path = (root / value).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UserError(f"image path {str(value)!r} leaves the image root {root}")
    return path


def _open(source: Path | io.BytesIO, *, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Only the size warning: Pillow also warns of harmless metadata, which is no reason to drop an image.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image that Pillow can read{_looks_like(source)}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels and is refused as a decompression bomb") from error
    # RuntimeError is how AVIF's decoder says that a file is damaged.
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{name} is damaged: {error}") from error
    with image:
        return _decode(image, name=name)


def _decode(image: Image.Image, *, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels and is refused as a decompression bomb")
    try:
        image.load()
    # SyntaxError: PNG's and AVIF's. TypeError: a TIFF whose tags are of other types than they must be.
    except (OSError, RuntimeError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(f"{name} is truncated or damaged: {error}") from error
    # Behind loading: TIFF's reader turns the pixels itself, and then drops the tag.
    turn = _TURNS.get(_read_orientation(image))
    shown = _on_white(_to_eight_bits(image, name=name))
    try:
        rgb = shown.convert("RGB")
    except ValueError as error:
        raise UserError(f"{name} can't be shown as RGB (mode {image.mode}): {error}") from error
    rgb = rgb if turn is None else rgb.transpose(turn)
    # Its tags are used up: whoever reads the image again must not turn it twice.
    rgb.info = {}
    return rgb


def _read_orientation(image: Image.Image) -> Any:
    # A block of tags that is damaged says nothing of sound pixels.
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(SyntaxError):
        return image.getexif().get(_ORIENTATION)
    return None


def _to_eight_bits(image: Image.Image, *, name: str) -> Image.Image:
    """Scale grey values of 16 and 32 bits and floats, which Pillow would clip; what the file calls transparent stays so."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{name} can't be shown as RGB (mode {image.mode}): it holds values that are not finite")
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else _full_range(values, floats=image.mode == "F")
    grey = Image.fromarray(np.rint((values - low) * 255 / max(high - low, 1e-300)).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _full_range(values: np.ndarray, *, floats: bool) -> tuple[float, float]:
    """Find the values that stand for black and white."""
    low, high = float(values.min()), float(values.max())
    ranges = [full for full in ((1.0, 255.0, 65535.0) if floats else (255.0, 65535.0)) if high <= full]
    return (0.0, ranges[0]) if low >= 0 and ranges else (low, high)


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    # Pillow takes the premultiplied modes to their plain ones and no further.
    plain = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", plain.size, "white"), plain)


def digest_images(images: Sequence[Image.Image]) -> str:
    """Hash decoded images to 16 hex digits: the same for a path, its bytes and the decoded picture. Empty without images."""
    if not images:
        return ""
    digest = xxhash.xxh3_64()
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def _looks_like(source: Path | io.BytesIO) -> str:
    """Say what a file that is no picture begins with, where that tells: a page saved under a picture's name is common."""
    try:
        head = source.getvalue()[:256] if isinstance(source, io.BytesIO) else _read_head(source)
    except OSError:
        return ""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kinds = {b"<svg": "SVG", b"<?xml": "XML or SVG", b"<!doctype html": "an HTML page", b"<html": "an HTML page", b"%pdf": "PDF"}
    kinds |= {b"%!ps": "PostScript", b"pk\x03\x04": "a zip archive", b"\x1f\x8b": "gzip"}
    kinds |= {b"version https://git-lfs": "a Git LFS pointer: run 'git lfs pull'"}
    return next((f"; it looks like {kind}" for start, kind in kinds.items() if text.startswith(start)), "")


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(256)

"""Fingerprints of images: of the exact bytes, and of what can be seen, which survives scaling and encoding again.

Shape legend: W = 4 words of 64 bits of a perceptual hash, N = images.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image

from mmalign.data.images import FORMATS

# The grey image is scaled to this side; the hash keeps the lowest frequencies of each axis: 16 x 16 = 256 bits.
SIDE = 64
FREQUENCIES = 16


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """(FREQUENCIES, SIDE): rows 1 to 16 of the type-II discrete cosine transform; row 0, the mean brightness, tells nothing."""
    k, n = np.arange(1, FREQUENCIES + 1)[:, None], np.arange(SIDE)[None, :]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * SIDE))


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Hash what an image shows: the signs of its low frequencies about their median (Zauner's pHash, 256 bits).

    Returns:
        (W,) uint64.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    spectrum = _cosines() @ grey @ _cosines().T
    return np.packbits(spectrum > np.median(spectrum)).view(np.uint64)


def hash_distances(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Count differing bits between a hash (W,) and others (N, W). Returns (N,) integers, 0 to 256."""
    return np.bitwise_count(many ^ one).sum(axis=1, dtype=np.int64)


def describe_bytes(data: bytes) -> tuple[str, str]:
    """Read mode and format from an image's header; the pixels stay encoded."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.mode, image.format or "unknown"

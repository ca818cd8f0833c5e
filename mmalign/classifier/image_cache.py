"""Images decoded once: a uint8 memory map of squares that every run on them shares.

Shape legend: N = images, S = side.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mmalign.classifier.labeled_images import LabeledImages
from mmalign.data.images import digest_images, load_image
from mmalign.data.rejects import Rejects
from mmalign.errors import UserError
from mmalign.files import whole

# How images are decoded: a cache of another rule is of other pixels.
_RULE = "upright, on white, scaled"


@dataclass(frozen=True)
class CachedImages:
    """Decoded images that are good, in the order of the data."""

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    pixels: NDArray[np.uint8]
    """(N, 3, S, S), on disk."""
    fingerprint: str
    """Of the images' content, their labels, and the side."""
    digests: tuple[str, ...] = ()
    """Of each decoded image, by which files of logits know it; see ``digest_images``."""


def cache_images(data: LabeledImages, folder: Path, *, side: int, rejects: Rejects) -> CachedImages:
    """Decode every image to a square (shorter side to ``side``, bicubic, centre crop), or find them decoded.

    A broken image goes to the rejects with its path and is left out; the run stops if too many are.

    Raises:
        ValueError: If too many images are broken.
    """
    fingerprint = hashlib.sha256(f"{data.fingerprint(folder)} {side} {_RULE}".encode()).hexdigest()
    path = folder / f"images-{fingerprint[:16]}.npy"
    about_path = path.with_suffix(".json")
    if not (path.is_file() and about_path.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        _decode(data, path, about_path, side=side, rejects=rejects)
    about = json.loads(about_path.read_text(encoding="utf-8"))
    broken = about["broken"]
    if rejects.num_rejected == 0:
        for index, reason in broken.items():
            rejects.add(data.ids[int(index)], reason)
        rejects.check(len(data), final=True)
    good = np.array([i for i in range(len(data)) if str(i) not in broken], dtype=np.int64)
    ids = tuple(data.ids[i] for i in good)
    return CachedImages(ids, data.labels[good], data.classes, np.load(path, mmap_mode="r"), fingerprint, tuple(about["digests"]))


def _decode(data: LabeledImages, path: Path, about_path: Path, *, side: int, rejects: Rejects) -> None:
    # Another process may be doing the same: the last rename wins with equal bytes.
    with whole(about_path) as about, whole(path) as partial:
        broken, digests = _decode_into(partial, data, side=side, rejects=rejects)
        about.write_text(json.dumps({"broken": broken, "digests": digests}), encoding="utf-8")


def _decode_into(path: Path, data: LabeledImages, *, side: int, rejects: Rejects) -> tuple[dict[int, str], list[str]]:
    """Write the pixels of all good images; return the reasons why others are broken, and the digests of the good."""
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(data), 3, side, side))
    broken: dict[int, str] = {}
    digests: list[str] = []
    for index, image in enumerate(tqdm(data.images, desc="decoding images", unit="image", leave=False)):
        try:
            decoded = load_image(image, root=data.root)
            pixels[len(digests)] = to_square(decoded, side)
            digests.append(digest_images([decoded]))
        except UserError as error:
            broken[index] = str(error)
            rejects.add(data.ids[index], str(error))
            rejects.check(index + 1)
    rejects.check(len(data), final=True)
    if not digests:
        raise UserError(f"no image of {len(data)} can be used; the reasons are in {rejects.path}. The first is {rejects.first}")
    pixels.flush()
    del pixels
    if broken:
        with whole(path) as shorter, shorter.open("wb") as file:
            np.save(file, np.load(path, mmap_mode="r")[: len(digests)])
    return broken, digests


def to_square(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Resize the shorter side to ``side`` and crop the centre: (3, S, S)."""
    if image.size != (side, side):
        scale = side / min(image.size)
        width, height = max(side, round(image.width * scale)), max(side, round(image.height * scale))
        left, top = (width - side) // 2, (height - side) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)

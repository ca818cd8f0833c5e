"""Training images that are benchmark images, byte for byte or to the eye."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_tools.image_hashes import hash_distances, perceptual_hash
from mmalign.data.images import SUFFIXES, load_image
from mmalign.errors import UserError


@dataclass(frozen=True)
class BenchmarkImages:
    """Names, sha256 and perceptual hashes, (N, W), of all images of benchmarks, and how many could not be read."""

    names: list[str]
    digests: dict[str, str]
    hashes: np.ndarray
    unreadable: list[str]

    def find(self, digest: str, image: Image.Image, *, max_distance: int) -> list[dict[str, Any]]:
        """List the benchmark images that equal a training image.

        Args:
            digest: Sha256 of the training image's bytes.
            image: The image, decoded.
            max_distance: Most differing bits of 256 at which two images count as the same.
        """
        if digest in self.digests:
            return [{"benchmark_image": self.digests[digest], "kind": "exact", "distance": 0}]
        if not self.names:
            return []
        distances = hash_distances(perceptual_hash(image), self.hashes)
        near = np.flatnonzero(distances <= max_distance)
        return [{"benchmark_image": self.names[i], "kind": "perceptual", "distance": int(distances[i])} for i in near]


def index_images(folders: Sequence[Path]) -> BenchmarkImages:
    """Hash every image file below the folders.

    Raises:
        ValueError: If a folder is missing or holds no image that can be read.
    """
    names: list[str] = []
    digests: dict[str, str] = {}
    hashes: list[np.ndarray] = []
    unreadable: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}; --benchmark-images names folders of images")
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        for path in tqdm(files, desc=f"hashing {folder.name}", unit="image", leave=False):
            data = path.read_bytes()
            try:
                hashes.append(perceptual_hash(load_image(data)))
            except ValueError:
                unreadable.append(str(path))
                continue
            names.append(str(path))
            digests.setdefault(hashlib.sha256(data).hexdigest(), str(path))
    if folders and not names:
        raise UserError(f"no image that can be read in {', '.join(map(str, folders))}")
    return BenchmarkImages(names, digests, np.array(hashes), unreadable)

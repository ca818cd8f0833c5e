"""Images of which little or nothing is left, drawn once per row: policy, reference, caches and a resumed run see the same one.

They are made of decoded images, so that every family's processor reads them, and in the image's own size, so that it makes as many
tokens of them. What is drawn per pixel is drawn on a grid as fine as LLaVA-1.5's input: finer noise would be gone when the processor has
made a large photograph small.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmalign.data.messages import Message, text_of, without_images
from mmalign.options.rows import Weakening, WeakenOptions

GRID = 336
"""Cells along the longer side of what is drawn per pixel."""
CROP_AREA, CROP_RATIO = (0.01, 0.2), (3 / 4, 4 / 3)
"""mDPO's (arXiv:2406.11839) and torchvision's own."""
MASKED_SHARE = 0.3
"""OPA-DPO's (arXiv:2501.09695)."""
DIFFUSION_STEP = 500
"""CHiP's (arXiv:2501.16629) and TPO's (arXiv:2412.14487)."""
NUM_STEPS = 1000
MEAN, STD = 0.5, 0.25
"""About what towers normalise pixels by, of 1 for white; noise is drawn in these units and cut to black and white."""


def alpha_bars() -> Tensor:
    """Signal left at each step of the diffusion schedule that BPO and VCD use: sigmoid betas from 1e-5 to 5e-3.

    Returns:
        (NUM_STEPS,) cumulative products of 1 - beta, in float64.
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, NUM_STEPS, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    return torch.cumprod(1 - betas, dim=0)


def weaken(image: Image.Image, kind: Weakening, rng: np.random.Generator) -> Image.Image:
    """Weaken an RGB image; its size stays.

    Args:
        image: Decoded.
        kind: ``crop``: a small part of it, enlarged; ``mask``: three of ten cells in its mean colour; ``noise``: Gaussian noise instead
            of it; ``diffusion``: half way to noise; ``blank``: grey.
        rng: Draws it.
    """
    return _MAKERS[kind](image, rng)


def weaken_row(images: Sequence[Image.Image], kind: Weakening, *, seed: int, row: str) -> list[Image.Image]:
    """Weaken a row's images; the same seed, row and kind give the same ones.

    Args:
        images: The row's own.
        kind: As ``weaken`` takes it, and ``none``, which leaves no image.
        seed: Of the run or the cache.
        row: What the row says; other texts on the same image have another weakened one.
    """
    if kind == "none":
        return []
    digest = hashlib.sha256(json.dumps([seed, row]).encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    return [weaken(image, kind, rng) for image in images]


def weaken_turns(
    images: Sequence[Image.Image], turns: Sequence[Message], options: WeakenOptions
) -> tuple[list[Image.Image], list[Message]]:
    """Weaken the images of turns, whose words are what the row says; where none is left, the turns have no places for them."""
    weakened = weaken_row(images, options.weaken, seed=options.weaken_seed, row="\n".join(map(text_of, turns)))
    return weakened, list(turns) if weakened else without_images(turns)


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    area = rng.uniform(*CROP_AREA) * image.width * image.height
    ratio = np.exp(rng.uniform(*np.log(CROP_RATIO)))
    width = int(np.clip(round(np.sqrt(area * ratio)), 1, image.width))
    height = int(np.clip(round(np.sqrt(area / ratio)), 1, image.height))
    left, top = (int(rng.integers(room + 1)) for room in (image.width - width, image.height - height))
    return image.resize(image.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def _mask(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image)
    masked = _spread(rng.random(_grid(image)) < MASKED_SHARE, image)
    return Image.fromarray(np.where(masked[..., None], np.rint(pixels.mean((0, 1))).astype(np.uint8), pixels))


def _noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _show(_spread(rng.standard_normal((*_grid(image), 3)), image))


def _diffuse(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    kept = alpha_bars()[DIFFUSION_STEP].item()
    values = (np.asarray(image) / 255 - MEAN) / STD
    return _show(np.sqrt(kept) * values + np.sqrt(1 - kept) * _spread(rng.standard_normal((*_grid(image), 3)), image))


def _blank(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", image.size, (round(255 * MEAN),) * 3)


_MAKERS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": _crop,
    "mask": _mask,
    "noise": _noise,
    "diffusion": _diffuse,
    "blank": _blank,
}


def _grid(image: Image.Image) -> tuple[int, int]:
    """Rows and columns of the grid, which is no finer than the image."""
    scale = min(1.0, GRID / max(image.size))
    return max(1, round(image.height * scale)), max(1, round(image.width * scale))


def _spread(drawn: NDArray[Any], image: Image.Image) -> NDArray[Any]:
    """Give each pixel its cell's value."""
    rows = np.arange(image.height) * drawn.shape[0] // image.height
    columns = np.arange(image.width) * drawn.shape[1] // image.width
    return drawn[rows][:, columns]


def _show(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(255 * (MEAN + STD * values)), 0, 255).astype(np.uint8))

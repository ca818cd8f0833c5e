"""The pictures that an image processor makes of images, as a person can look at them.

Shape legend: P = side of a patch in pixels, H and W = height and width in pixels, or in patches where it says so.
"""

from collections.abc import Iterator, Mapping
from math import isqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor


def processed_pictures(image_processor: Any, images: Mapping[str, Tensor]) -> list[Image.Image]:
    """Undo normalisation and patches: what the vision tower is given, tile by tile.

    Args:
        image_processor: What made the tensors.
        images: ``EncodedPrompt.images``.

    Returns:
        The pictures, without tiles that are padding alone; none where the tensors have a form that isn't known here.
    """
    values = images.get("pixel_values")
    if values is None:
        return []
    found = list(_grids(values, images["image_grid_thw"], image_processor) if "image_grid_thw" in images else _crops(values, images))
    return [_to_picture(pixels, image_processor) for pixels in found if pixels.any()]


def _crops(values: Tensor, images: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """(3, H, W) of tiles that are pictures, or that are patches in rows, (crops, patches, P x P x 3)."""
    if values.ndim > 3 and values.shape[-3] == 3:
        yield from values.flatten(0, -4)
    elif values.ndim == 3:
        for number, patches in enumerate(values):
            height, width = _shape_in_patches(number, len(patches), images)
            side = isqrt(patches.shape[-1] // 3)
            squares = patches[: height * width].view(height, width, side, side, 3)
            yield squares.permute(4, 0, 2, 1, 3).reshape(3, height * side, width * side)


def _shape_in_patches(number: int, patches: int, images: Mapping[str, Tensor]) -> tuple[int, int]:
    if "spatial_shapes" in images:
        height, width = images["spatial_shapes"][number].tolist()
    elif "image_position_ids" in images:
        width, height = (images["image_position_ids"][number].amax(0) + 1).tolist()
    else:
        height = width = isqrt(patches)
    return height, width


def _grids(values: Tensor, grids: Tensor, image_processor: Any) -> Iterator[Tensor]:
    """(3, H, W) of images whose patches, (patches, 3 x frames x P x P), stand in blocks that the tower merges (Qwen-VL)."""
    side, block = image_processor.patch_size, image_processor.merge_size
    sizes = grids.prod(-1).tolist()
    for patches, (_, height, width) in zip(values.split(sizes), grids.tolist(), strict=True):
        blocks = patches[: height * width].view(height // block, width // block, block, block, 3, -1, side, side)[..., 0, :, :]
        yield blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height * side, width * side)


def _to_picture(pixels: Tensor, image_processor: Any) -> Image.Image:
    pixels = pixels.float()
    if image_processor.do_normalize:
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (image_processor.image_mean, image_processor.image_std))
        pixels = pixels * std + mean
    return Image.fromarray((255 * pixels.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy())

"""Views of images made on tensors: a view is a function of a few numbers, so that it can be drawn anew, or be the same again.

Shape legend: B = images, S = side of the stored squares, H = side of a view, U = numbers behind a view.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.options.classifier import Augmentation

NUM_NUMBERS = 5
# Strong views: cut-out's corner, brightness, contrast, colour.
NUM_STRONG_NUMBERS = 5
_SMALLEST_SCALE = 0.5


def draw_numbers(number: int, *, width: int = NUM_NUMBERS, generator: torch.Generator | None = None) -> Tensor:
    """Draw the (B, U) numbers in [0, 1) behind new views, on the CPU, so that a resumed run draws the same on any device."""
    return torch.rand(number, width, generator=generator)


def fixed_numbers(number: int, views: int, *, seed: int) -> Tensor:
    """Draw the (N, views, U) numbers behind fixed views; the seed is part of a cache's name."""
    return torch.rand(number, views, NUM_NUMBERS, generator=torch.Generator().manual_seed(seed))


def make_views(images: Tensor, numbers: Tensor | None, *, augmentation: Augmentation, side: int) -> Tensor:
    """Cut a view out of each image.

    ``pad-crop`` shifts by up to an eighth of the side over reflected borders and flips; ``random-resized-crop`` takes a box of half to
    all of the area and 3/4 to 4/3 in shape (the paper's), and flips; ``none`` crops the centre.

    Args:
        images: (B, 3, S, S) uint8.
        numbers: (B, 5) in [0, 1); None for the centre.
        augmentation: Kind of view.
        side: H.

    Returns:
        (B, 3, H, H) float32 in [0, 1].
    """
    if numbers is None or augmentation == "none":
        return _centre(images, side)
    numbers = numbers.to(images.device)
    if augmentation == "pad-crop":
        return _to_side(_shift_and_flip(images, numbers).float() / 255, side)
    return _resized_crop(images.float() / 255, numbers, side)


def strengthen(views: Tensor, numbers: Tensor) -> Tensor:
    """Make strong views of weak ones: brightness and contrast by up to 40%, saturation from none to double, a grey square of half the side.

    Args:
        views: (B, 3, H, H) in [0, 1].
        numbers: (B, 5) in [0, 1).
    """
    u = numbers.to(views.device)[:, :, None, None, None]
    views = views * (0.6 + 0.8 * u[:, 2])
    mean = views.mean((1, 2, 3), keepdim=True)
    views = mean + (views - mean) * (0.6 + 0.8 * u[:, 3])
    grey = views.mean(1, keepdim=True)
    views = (grey + (views - grey) * (2 * u[:, 4])).clamp(0, 1)
    side = views.shape[-1]
    half = side // 2
    place = torch.arange(side, device=views.device)
    top, left = ((u[:, i, 0, 0] * side).long() - half // 2 for i in (0, 1))
    inside = [(place >= start) & (place < start + half) for start in (top, left)]
    return views.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.5)


def _centre(images: Tensor, side: int) -> Tensor:
    stored = images.shape[-1]
    if stored < side:
        return _to_side(images.float() / 255, side)
    start = (stored - side) // 2
    return images[..., start : start + side, start : start + side].float() / 255


def _to_side(views: Tensor, side: int) -> Tensor:
    if views.shape[-1] == side:
        return views
    return F.interpolate(views, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)


def _shift_and_flip(images: Tensor, numbers: Tensor) -> Tensor:
    side = images.shape[-1]
    reach = side // 8
    shifts = (numbers[:, :2] * (2 * reach + 1)).long() - reach
    place = torch.arange(side, device=images.device)
    rows, columns = (_reflect(place + shift[:, None], side) for shift in shifts.unbind(1))
    columns = torch.where(numbers[:, 2:3] < 0.5, columns.flip(1), columns)
    width = images.shape[-1]
    tall = images.gather(2, rows[:, None, :, None].expand(-1, 3, -1, width))
    return tall.gather(3, columns[:, None, None, :].expand(-1, 3, side, -1))


def _reflect(place: Tensor, side: int) -> Tensor:
    place = place.abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)


def _resized_crop(images: Tensor, numbers: Tensor, side: int) -> Tensor:
    area = _SMALLEST_SCALE + (1 - _SMALLEST_SCALE) * numbers[:, 0]
    ratio = torch.exp((2 * numbers[:, 1] - 1) * torch.log(torch.tensor(4 / 3, device=images.device)))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (1 - width) * (2 * numbers[:, 3] - 1), (1 - height) * (2 * numbers[:, 4] - 1)
    flip = torch.where(numbers[:, 2] < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(x)
    boxes = torch.stack([torch.stack([width * flip, zero, x], -1), torch.stack([zero, height, y], -1)], 1)
    grid = F.affine_grid(boxes, [len(images), 3, side, side], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

"""The noise that an image would come from: DDIM's sampling run backwards (InPO, arXiv:2503.18454; SmPO, arXiv:2506.02698).

Shape legend: B = images, K = steps, ... = channels, height and width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.denoisers.schedule import Levels, add_noise, implied_image

PredictNoise = Callable[[Tensor, int], Tensor]
"""(x_s of (B, ...), number of the grid's point) to the noise that the model sees in it."""


class Grid(NamedTuple):
    """The points that an inversion passes: the first is the clean image, a = 1 and b = 0."""

    times: Tensor
    """(K + 1,) steps of the scheduler, where the denoiser is asked; the clean image is shown as step 0."""
    signal: Tensor
    """(K + 1,) a."""
    noise: Tensor
    """(K + 1,) b."""


def build_grid(alphas_cumprod: Tensor, steps: int) -> Grid:
    """Lay K equal steps over a scheduler's times; the last point is its noisiest."""
    total = len(alphas_cumprod)
    done = torch.arange(steps + 1) * total // steps
    times = (done - 1).clamp(min=0)
    alphas = torch.where(done == 0, 1.0, alphas_cumprod.cpu()[times])
    return Grid(times, alphas.sqrt(), (1 - alphas).sqrt())


def invert(images: Tensor, predict_noise: PredictNoise, grid: Grid, stops: Tensor, *, renoise: bool) -> Tensor:
    """Run images along the grid, each to its own point.

    x^ = (x_s - b_s e) / a_s, x_{s+1} = a_{s+1} x^ + b_{s+1} e with e the model's noise at x_s; with ``renoise`` the mean of e and the noise
    that the model sees, still at time s, in the x_{s+1} that e leads to.

    Args:
        images: (B, ...) clean.
        predict_noise: The policy; called without gradient.
        grid: Its points.
        stops: (B,) number of the point that each image is wanted at. The authors' code of SmPO draws any time, stops at the last point
            before it and takes the noise as if it had come to it, with the first image's time for the batch; that is not done here.
        renoise: Refine each step once, as SmPO does.

    Returns:
        (B, ...) x_t, each at its point.
    """
    current, stops = images, stops.to(images.device)
    with torch.no_grad():
        for point in range(int(stops.max())):
            here, there = (_levels(grid, number, like=images) for number in (point, point + 1))
            noise = predict_noise(current, point)
            if renoise:
                reached = _move(current, noise, here, there)
                noise = (noise + predict_noise(reached, point)) / 2
            moving = (stops > point).view(-1, 1, 1, 1)
            current = torch.where(moving, _move(current, noise, here, there), current)
    return current


def inverted_noise(images: Tensor, noisy: Tensor, levels: Levels) -> Tensor:
    """(B, ...) the noise of the loss: n = (x_t - a x) / b."""
    return (noisy - levels.signal * images) / levels.noise


def _move(current: Tensor, noise: Tensor, here: Levels, there: Levels) -> Tensor:
    return add_noise(implied_image("epsilon", noise, current, here), noise, there)


def _levels(grid: Grid, point: int, *, like: Tensor) -> Levels:
    return Levels(grid.signal[point].to(like), grid.noise[point].to(like))

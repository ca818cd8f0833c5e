"""What a denoiser sees and what it predicts: x_t = a x + b n, and the targets eps, x, v and k.

Shape legend: B = images, ... = channels, height and width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.options.denoisers import Target


class Levels(NamedTuple):
    """How much of an image and of noise is in x_t; each broadcasts to the images."""

    signal: Tensor
    """(B, 1, 1, 1) a."""
    noise: Tensor
    """(B, 1, 1, 1) b."""


def levels_at(alphas_cumprod: Tensor, times: Tensor) -> Levels:
    """Read a = sqrt(alpha) and b = sqrt(1 - alpha) of a variance-preserving schedule.

    Args:
        alphas_cumprod: (T,) of the scheduler.
        times: (B,) from 0 to T - 1.
    """
    alphas = alphas_cumprod.to(times.device)[times].view(-1, 1, 1, 1)
    return Levels(alphas.sqrt(), (1 - alphas).sqrt())


def add_noise(images: Tensor, noise: Tensor, levels: Levels) -> Tensor:
    """(B, ...) x_t = a x + b n."""
    return levels.signal * images + levels.noise * noise


def make_target(kind: Target, images: Tensor, noise: Tensor, levels: Levels, *, share: Tensor | None = None) -> Tensor:
    """(B, ...) what the denoiser is to predict: n, x, a n - b x, or k x - (1 - k) n.

    Args:
        kind: The target.
        images: (B, ...) x.
        noise: (B, ...) n.
        levels: a and b.
        share: () the scalar k of k-Diff (arXiv:2601.21419): 1 is x, 0 is -n, 1/2 is minus half the flow's velocity n - x.
    """
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return images
    if kind == "v_prediction":
        return levels.signal * noise - levels.noise * images
    share = _known(share)
    return share * images - (1 - share) * noise


def implied_image(kind: Target, prediction: Tensor, noisy: Tensor, levels: Levels, *, share: Tensor | None = None) -> Tensor:
    """(B, ...) the image that a prediction at x_t stands for; arguments as above."""
    a, b = levels
    if kind == "epsilon":
        return (noisy - b * prediction) / a
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        return (a * noisy - b * prediction) / (a.square() + b.square())
    share = _known(share)
    return (b * prediction + (1 - share) * noisy) / (share * b + (1 - share) * a)


def implied_noise(kind: Target, prediction: Tensor, noisy: Tensor, levels: Levels, *, share: Tensor | None = None) -> Tensor:
    """(B, ...) the noise that a prediction at x_t stands for; arguments as above."""
    a, b = levels
    if kind == "epsilon":
        return prediction
    if kind == "v_prediction":
        return (b * noisy + a * prediction) / (a.square() + b.square())
    return (noisy - a * implied_image(kind, prediction, noisy, levels, share=share)) / b


class ReverseStep(NamedTuple):
    """Where a sampler goes from x_t: a Gaussian."""

    mean: Tensor
    """(B, ...)."""
    sigma: Tensor
    """Its standard deviation; broadcasts to (B, ...). 0 where a clean image is reached."""


def reverse_step(image: Tensor, noise: Tensor, here: Levels, there: Levels) -> ReverseStep:
    """Step from one level to a cleaner one: DDIM with eta 1 (arXiv:2010.02502, Eq. 12 and 16), which is DDPM's step.

    sigma is (b_s / b_t) sqrt(1 - a_t^2 / a_s^2); of the noise that was seen, sqrt(b_s^2 - sigma^2) = b_s^2 a_t / (a_s b_t) stays.

    Args:
        image: (B, ...) that the model sees in x_t.
        noise: (B, ...) the same.
        here: a_t and b_t.
        there: a_s and b_s.
    """
    share = here.signal / there.signal
    sigma = there.noise / here.noise * (1 - share.square()).sqrt()
    return ReverseStep(there.signal * image + there.noise.square() * share / here.noise * noise, sigma)


def velocity_scale(levels: Levels, share: Tensor) -> Tensor:
    """(B, 1, 1, 1) factor that turns an error of a k prediction into the velocity's, a n - b x.

    The learned k must not choose the space of its own loss: in the middle, image and noise of the target partly cancel, and k would move
    to where errors are small instead of where images are right (ours; arXiv:2601.21419 is known here second hand).
    """
    a, b = levels
    return (a.square() + b.square()) / (share * b + (1 - share) * a)


def _known(share: Tensor | None) -> Tensor:
    assert share is not None, "the target k needs its share"
    return torch.as_tensor(share)

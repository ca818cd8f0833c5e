"""Targets and inversion: worked values, what k is at its ends, a path and back."""

import math

import pytest
import torch
from torch import Tensor

from mmalign.denoisers.inversion import Grid, build_grid, invert, inverted_noise
from mmalign.denoisers.schedule import (
    Levels,
    add_noise,
    implied_image,
    implied_noise,
    levels_at,
    make_target,
    velocity_scale,
)
from mmalign.options.denoisers import Target

F64 = torch.float64


def one(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=F64)


def random_images(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)


# x .7, n -.4, a .3, b .7: x_t = .21 - .28 = -.07.
X, N, FLOW = one(0.7), one(-0.4), Levels(one(0.3), one(0.7))


@pytest.mark.parametrize(("share", "value"), [(0.5, 0.55), (0.25, 0.475)])
def test_k_target_by_hand(share: float, value: float) -> None:
    k = torch.tensor(share, dtype=F64)
    noisy = add_noise(X, N, FLOW)
    assert noisy.item() == pytest.approx(-0.07, abs=1e-12)
    target = make_target("k", X, N, FLOW, share=k)
    assert target.item() == pytest.approx(value, abs=1e-12)
    divisor = share * 0.7 + (1 - share) * 0.3
    assert divisor == pytest.approx({0.5: 0.5, 0.25: 0.4}[share], abs=1e-12)
    expected = (0.7 * value + (1 - share) * -0.07) / divisor
    assert implied_image("k", target, noisy, FLOW, share=k).item() == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.7, abs=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "k"])
def test_a_target_stands_for_its_image_and_noise(kind: Target) -> None:
    images, noise, share = random_images(0), random_images(1), torch.tensor(0.3, dtype=F64)
    levels = levels_at(torch.linspace(0.999, 0.01, 100, dtype=F64), torch.tensor([3, 90]))
    noisy, target = add_noise(images, noise, levels), make_target(kind, images, noise, levels, share=share)
    torch.testing.assert_close(implied_image(kind, target, noisy, levels, share=share), images)
    torch.testing.assert_close(implied_noise(kind, target, noisy, levels, share=share), noise)


@pytest.mark.parametrize(
    ("share", "kind", "output"), [(1.0, "sample", lambda u: u), (0.0, "epsilon", lambda u: -u), (0.5, "flow", lambda u: -2 * u)]
)
def test_k_at_its_ends_and_its_middle_is_a_fixed_target(share: float, kind: str, output: object) -> None:
    """The image that any output stands for, on the flow's schedule a + b = 1; the middle's is x_t - b (n - x)."""
    assert callable(output)
    prediction, noisy = random_images(2), random_images(3)
    found = implied_image("k", prediction, noisy, FLOW, share=torch.tensor(share, dtype=F64))
    mapped = output(prediction)
    expected = noisy - FLOW.noise * mapped if kind == "flow" else implied_image(kind, mapped, noisy, FLOW)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_velocity_scale_turns_an_error_into_the_velocitys() -> None:
    levels = levels_at(torch.linspace(0.999, 0.01, 100, dtype=F64), torch.tensor([3, 90]))
    images, noise, prediction, share = random_images(0), random_images(1), random_images(2), torch.tensor(0.3, dtype=F64)
    noisy = add_noise(images, noise, levels)
    error = velocity_scale(levels, share) * (prediction - make_target("k", images, noise, levels, share=share))
    image = implied_image("k", prediction, noisy, levels, share=share)
    velocity = make_target("v_prediction", image, (noisy - levels.signal * image) / levels.noise, levels)
    torch.testing.assert_close(error.abs(), (velocity - make_target("v_prediction", images, noise, levels)).abs())


def test_k_does_not_shrink_its_own_loss() -> None:
    """Of images that are noise themselves nothing can be known but x_t, early or late: no k is better than another.

    The target's own error is smallest in the middle, where half an image and half of its noise partly cancel.
    """
    images, noise = torch.randn(2, 20000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    signal = torch.where(torch.arange(20000) % 2 == 0, 0.95, math.sqrt(1 - 0.95**2)).view(-1, 1, 1, 1).to(F64)
    levels = Levels(signal, (1 - signal.square()).sqrt())
    noisy = add_noise(images, noise, levels)

    def losses(share: float) -> tuple[float, float]:
        k = torch.tensor(share, dtype=F64)
        # The best guess from x_t: E[x | x_t] = a x_t, E[n | x_t] = b x_t.
        guess = (k * levels.signal - (1 - k) * levels.noise) * noisy
        error = guess - make_target("k", images, noise, levels, share=k)
        return error.square().mean().item(), (velocity_scale(levels, k) * error).square().mean().item()

    own, fixed = zip(*(losses(share) for share in (0.0, 0.5, 1.0)), strict=True)
    assert own[1] < 0.82 * min(own[0], own[2])
    assert max(fixed) - min(fixed) < 1e-12


def cosine(step: int) -> float:
    return math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2


def gaussian_noise(current: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """What the best denoiser sees in Gaussian data of variance 1/4: E[n | x_t] = b x_t / (a^2 / 4 + b^2)."""
    return noise * current / (0.25 * signal.square() + noise.square())


COSINE = torch.tensor([cosine(step) / cosine(0) for step in (0, 100, 200, 300)], dtype=F64)
GRID = Grid(torch.tensor([0, 100, 200, 300]), COSINE.sqrt(), (1 - COSINE).sqrt())


@pytest.mark.parametrize(("renoise", "point", "noise"), [(False, 0.686218955710, 0.333547882393), (True, 0.692872715730, 0.347961935552)])
def test_inversion_of_gaussian_data(renoise: bool, point: float, noise: float) -> None:
    def predict(current: Tensor, number: int) -> Tensor:
        return gaussian_noise(current, GRID.signal[number], GRID.noise[number])

    found = invert(one(0.6), predict, GRID, torch.tensor([3]), renoise=renoise)
    assert found.item() == pytest.approx(point, abs=1e-12)
    levels = Levels(GRID.signal[3], GRID.noise[3])
    assert inverted_noise(one(0.6), found, levels).item() == pytest.approx(noise, abs=1e-12)


def test_each_image_stops_at_its_own_point() -> None:
    def predict(current: Tensor, number: int) -> Tensor:
        return gaussian_noise(current, GRID.signal[number], GRID.noise[number])

    images = torch.cat([one(0.6), one(-0.3), one(0.6), one(0.6)])
    found = invert(images, predict, GRID, torch.tensor([1, 3, 0, 3]), renoise=False)
    for row, stop in enumerate((1, 3, 0, 3)):
        alone = invert(images[row : row + 1], predict, GRID, torch.tensor([stop]), renoise=False)
        torch.testing.assert_close(found[row : row + 1], alone, rtol=0, atol=0)


def test_a_path_leads_back() -> None:
    """Many small steps up, and DDIM's steps down the same grid: the image again."""
    alphas = torch.tensor([cosine(step) / cosine(0) for step in range(1, 1001)], dtype=F64)
    grid = build_grid(alphas, 500)
    assert (grid.signal[0].item(), grid.noise[0].item(), grid.times[-1].item()) == (1.0, 0.0, 999)

    def predict(current: Tensor, number: int) -> Tensor:
        return gaussian_noise(current, grid.signal[number], grid.noise[number])

    images = random_images(4)[:, :1]
    current = invert(images, predict, grid, torch.full((2,), 450), renoise=False)
    for number in range(450, 0, -1):
        here, there = (Levels(grid.signal[i], grid.noise[i]) for i in (number, number - 1))
        noise = predict(current, number)
        current = add_noise(implied_image("epsilon", noise, current, here), noise, there)
    assert (current - images).square().mean() < 1e-4 * images.square().mean()

"""Weakened images: what is left of them, and that they are drawn once."""

import numpy as np
import pytest
from PIL import Image

from mmalign.data.weaken import DIFFUSION_STEP, MASKED_SHARE, alpha_bars, weaken, weaken_row
from mmalign.options.rows import Weakening
from tests.tiny_models import random_image

KINDS: list[Weakening] = ["crop", "mask", "noise", "diffusion", "blank"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(40, 32), (1, 1), (3, 700), (900, 5)])
def test_size_and_mode_stay(kind: Weakening, size: tuple[int, int]) -> None:
    image = random_image(1, size)
    made = weaken(image, kind, rng())
    assert (made.size, made.mode) == (image.size, "RGB")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_row_sees_the_same_image(kind: Weakening) -> None:
    images = [random_image(1), random_image(2)]
    one, again = (weaken_row(images, kind, seed=3, row="What is there?") for _ in range(2))
    assert [image.tobytes() for image in one] == [image.tobytes() for image in again]
    assert images[0].tobytes() == random_image(1).tobytes(), "the row's own stays as it is"
    if kind != "blank":
        assert one[0].tobytes() != weaken_row(images, kind, seed=4, row="What is there?")[0].tobytes()
        assert one[0].tobytes() != weaken_row(images, kind, seed=3, row="Where is it?")[0].tobytes()
        assert one[0].tobytes() != images[0].tobytes()


def test_none_leaves_no_image() -> None:
    assert weaken_row([random_image(1)], "none", seed=0, row="") == []


def test_a_crop_shows_a_small_part() -> None:
    """Of a picture whose red grows to the right and green downwards, each crop holds a range of both, of a fifth of the area at most."""
    ramp = np.zeros((200, 300, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(300)[None] * 255 // 299, np.arange(200)[:, None] * 255 // 199
    for seed in range(50):
        pixels = np.asarray(weaken(Image.fromarray(ramp), "crop", rng(seed))).astype(int)
        across, down = (np.ptp(pixels[5:-5, 5:-5, channel]) / 255 for channel in (0, 1))
        assert 0.003 < across * down < 0.21


def test_a_mask_hides_its_share_in_the_mean_colour() -> None:
    image = random_image(5, (300, 200))
    pixels, made = (np.asarray(one) for one in (image, weaken(image, "mask", rng())))
    hidden = (made == np.rint(pixels.mean((0, 1)))).all(-1)
    assert hidden.mean() == pytest.approx(MASKED_SHARE, abs=0.01)
    assert (made[~hidden] == pixels[~hidden]).all()


def test_a_large_photograph_is_masked_in_cells_that_a_small_input_still_shows() -> None:
    image = Image.new("RGB", (3360, 1680), (250, 0, 0))
    image.paste((0, 0, 250), (0, 0, 1680, 1680))
    small = np.asarray(weaken(image, "mask", rng()).resize((336, 168), Image.Resampling.BOX)).astype(int)
    # Finer masks would leave each small pixel three tenths purple: here seven of ten are as they were.
    kept = (np.abs(small - [0, 0, 250]).sum(-1) < 3) | (np.abs(small - [250, 0, 0]).sum(-1) < 3)
    assert kept.mean() == pytest.approx(1 - MASKED_SHARE, abs=0.01)


def test_diffusion_keeps_the_schedules_share() -> None:
    """Grey 0.6 is 0.4 standard deviations above the middle: sqrt(kept) of it is left, and noise of sqrt(1 - kept)."""
    kept = alpha_bars()[DIFFUSION_STEP].item()
    assert 0.3 < kept < 0.9
    pixels = (np.asarray(weaken(Image.new("RGB", (300, 300), (153, 153, 153)), "diffusion", rng())) / 255 - 0.5) / 0.25
    assert pixels.mean() == pytest.approx(kept**0.5 * 0.4, abs=0.02)
    assert pixels.std() == pytest.approx((1 - kept) ** 0.5, abs=0.02)


def test_noise_and_blank_say_nothing_of_the_image() -> None:
    kinds: tuple[Weakening, ...] = ("noise", "blank")
    for kind in kinds:
        first, second = (weaken(random_image(seed), kind, rng()).tobytes() for seed in (1, 2))
        assert first == second

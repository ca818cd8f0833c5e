"""Synthetic sets: what a step moves and what it leaves, a pool that renews itself, the loss by a second way, resume to the same bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.utils import parameters_to_vector

from mmalign.classifier.image_distillation import ImageDistillation, PoolNetwork, RealImages
from mmalign.classifier.synthetic_images import save_sheet
from mmalign.errors import UserError
from mmalign.options.distill_images import DistillImagesOptions
from tests.tiny_classifiers import RESNET

NUMBER, WIDTH = 40, 6
CPU = torch.device("cpu")


def build(**options: Any) -> ImageDistillation:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (NUMBER, 3, 32, 32), dtype=np.uint8)
    features = torch.from_numpy(rng.normal(size=(NUMBER, WIDTH)).astype(np.float32))
    given = {"data": Path("data"), "out": Path("out"), "target": "none", "backbone_options": RESNET, "num_images": 8, "batch_size": 12}
    given |= {"steps": 8, "pool_size": 2, "online_steps": 3, **options}
    return ImageDistillation(DistillImagesOptions(**given), RealImages(pixels, features), device=CPU)


def test_it_begins_at_real_images_and_their_features() -> None:
    found = build()
    assert len(set(found.start.tolist())) == 8
    np.testing.assert_array_equal(found.images(), found.real.pixels[found.start])
    torch.testing.assert_close(found.features.detach(), found.real.features[found.start])
    assert build().start.tolist() == found.start.tolist() != build(seed=1).start.tolist()


def test_a_step_moves_the_set_and_one_network_alone() -> None:
    """AdamW's first step moves every number by the learning rate, and by its decay of 1%."""
    found = build(learning_rate=1e-2)
    pixels, features = found.pixels.detach().clone(), found.features.detach().clone()
    weights = [parameters_to_vector(network.parts.parameters()).detach().clone() for network in found.pool]
    loss = found.step()
    assert loss > 0
    moved = (found.features.detach() - features * (1 - 1e-4)).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=0)
    inside = (found.pixels > found.low + 0.02) & (found.pixels < found.high - 0.02)
    moved = (found.pixels.detach() - pixels * (1 - 1e-4)).abs()[inside]
    assert moved.median().item() == pytest.approx(1e-2, rel=1e-2)
    now = [parameters_to_vector(network.parts.parameters()) for network in found.pool]
    assert sorted(not torch.equal(one, old) for one, old in zip(now, weights, strict=True)) == [False, True]


def test_pixels_stay_pixels() -> None:
    found = build(learning_rate=1.0)
    for _ in range(3):
        found.step()
    assert torch.all(found.pixels >= found.low)
    assert torch.all(found.pixels <= found.high)


def test_loss_by_the_regression_on_weights() -> None:
    """As least squares on the features with rows of the square root of lambda below them."""
    found, batch = build(), torch.arange(12)
    network = found.pool[0]
    loss = found.compute_loss(network, batch).item()
    with torch.no_grad():
        rows = [network.backbone(found._prepare(index)).double() for index in (found.start, batch.numpy())]
    synthetic, real = (torch.cat([one, torch.ones(len(one), 1, dtype=torch.float64)], 1) for one in rows)
    penalty = 1e-6 * synthetic.square().sum()
    below = penalty.sqrt() * torch.eye(synthetic.shape[1], dtype=torch.float64)
    targets = torch.cat([found.features.detach().double(), torch.zeros(len(below), WIDTH, dtype=torch.float64)])
    weights = torch.linalg.lstsq(torch.cat([synthetic, below]), targets).solution
    expected = (real @ weights - found.real.features[batch].double()).square().mean().item()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_networks_learn_a_step_per_visit_and_are_renewed() -> None:
    found = build(steps=40, pool_size=2, online_steps=3)
    assert [network.age for network in found.pool] == [0, 1]
    seen, renewed = [], 0
    for _ in range(16):
        before = list(found.pool)
        found.step()
        renewed += sum(one is not other for one, other in zip(before, found.pool, strict=True))
        seen.append(max(network.age for network in found.pool))
    assert max(seen) == 3
    # 3 + 2 steps until both are old, then one visit in four puts a new one in.
    assert 2 <= renewed <= 4


def test_a_network_learns_the_set() -> None:
    found = build(num_images=8)
    network: PoolNetwork = found.pool[0]
    before, first = found.pixels.detach().clone(), network.backbone(found.pixels.detach())
    errors = []
    for _ in range(30):
        with torch.no_grad():
            errors.append((network.head(network.backbone(before)) - found.features).square().mean().item())
        network.learn(found.pixels.detach(), found.features.detach())
    assert errors[-1] < 0.5 * errors[0]
    assert torch.equal(before, found.pixels)
    assert first.shape == (8, RESNET["channels"][-1])


def test_learned_images_predict_better_than_the_real_ones_they_began_as() -> None:
    """The loss on one batch and one network, which is what the gradient is of."""
    found, batch = build(learning_rate=1e-2), torch.arange(NUMBER)
    network = found.pool[0]
    losses = []
    for _ in range(20):
        loss = found.compute_loss(network, batch)
        losses.append(loss.item())
        found.pixels.grad, found.features.grad = torch.autograd.grad(loss, [found.pixels, found.features])
        found.optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("stop", [1, 5])
def test_resume_equals_never_having_stopped(tmp_path: Path, stop: int) -> None:
    whole, first, second = build(), build(), build()
    for _ in range(8):
        whole.step()
    for _ in range(stop):
        first.step()
    torch.save(first.state(), tmp_path / "state.pt")
    torch.manual_seed(77)
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(8 - stop):
        second.step()
    assert whole.losses == second.losses
    assert torch.equal(whole.pixels, second.pixels)
    assert torch.equal(whole.features, second.features)


def test_more_synthetic_images_than_real_ones_are_refused() -> None:
    with pytest.raises(UserError, match="num_images is 41 and there are 40 real images"):
        build(num_images=41)


def test_a_loss_that_is_not_finite_stops() -> None:
    found = build()
    found.real.features.fill_(torch.inf)
    with pytest.raises(UserError, match="the loss of step 0 is .*lower --learning-rate"):
        found.step()


def test_sheet_shows_starts_above_what_they_became(tmp_path: Path) -> None:
    before, after = np.zeros((23, 3, 16, 16), dtype=np.uint8), np.full((23, 3, 16, 16), 200, dtype=np.uint8)
    save_sheet(tmp_path / "sheet.png", before, after)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (50 + 50 + 6), 20 * 50, 3)
    assert [sheet[row, 25, 0] for row in (10, 60, 116, 166)] == [0, 200, 0, 200]
    assert sheet[116, 10 * 50, 0] == 255

"""A reward model's loss: the worked example, a second derivation, gradients, limits, padding, and what a margin does to MADPO's weight."""

import math

import pytest
import torch
from torch import Tensor

from mmalign.losses.bradley_terry import bradley_terry_loss

F64 = torch.float64
REWARDS = [1.3, -0.4, 0.2, 2.0, -1.1, 0.7]
SCORES = [1.0, 0.0, 0.5, 0.5, 2.0, 0.5]
COUNTS = [2, 4]


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=F64, requires_grad=True)


def loss_of(rewards: Tensor, scores: list[float], counts: list[int], **options: float) -> Tensor:
    return bradley_terry_loss(rewards, torch.tensor(scores), torch.tensor(counts), **options)


def expected(rewards: list[float], scores: list[float], margin: float, centering: float) -> float:
    """Pair by pair in plain Python."""
    found = [
        math.log1p(math.exp(margin - (first - second))) + centering * (first + second) ** 2
        for first, a in zip(rewards, scores, strict=True)
        for second, b in zip(rewards, scores, strict=True)
        if a > b
    ]
    return sum(found) / len(found)


def test_the_worked_pair() -> None:
    for centering, value, slope in ((0.0, 0.167786029386, -0.154465265084), (0.01, 0.175886029386, -0.154465265084 + 0.018)):
        rewards = tensor([1.3, -0.4])
        loss = loss_of(rewards, [1, 0], [2], centering=centering)
        loss.sum().backward()
        assert loss.tolist() == pytest.approx([value], abs=1e-9)
        assert rewards.grad is not None
        assert rewards.grad[0].item() == pytest.approx(slope, abs=1e-9)


def test_a_margin_moves_the_pair() -> None:
    """At a margin of r_w - r_l the loss is log 2; the order of the responses in the row is nothing."""
    assert loss_of(tensor([1.3, -0.4]), [1, 0], [2], margin=1.7).item() == pytest.approx(math.log(2), abs=1e-9)
    swapped = loss_of(tensor([-0.4, 1.3]), [0, 1], [2], margin=0.3, centering=0.01)
    assert swapped.item() == pytest.approx(loss_of(tensor([1.3, -0.4]), [1, 0], [2], margin=0.3, centering=0.01).item(), abs=1e-12)


@pytest.mark.parametrize(("margin", "centering"), [(0.0, 0.0), (0.5, 0.01), (-0.2, 0.3)])
def test_lists_are_means_over_their_unequal_pairs(margin: float, centering: float) -> None:
    rewards = tensor(REWARDS)
    loss = loss_of(rewards, SCORES, COUNTS, margin=margin, centering=centering)
    by_hand = [expected(REWARDS[:2], SCORES[:2], margin, centering), expected(REWARDS[2:], SCORES[2:], margin, centering)]
    assert loss.tolist() == pytest.approx(by_hand, abs=1e-9)
    loss.sum().backward()
    step = 1e-6
    for i in range(len(REWARDS)):
        ends = []
        for sign in (1, -1):
            moved = [value + sign * step * (i == j) for j, value in enumerate(REWARDS)]
            ends.append(expected(moved[:2], SCORES[:2], margin, centering) + expected(moved[2:], SCORES[2:], margin, centering))
        assert rewards.grad is not None
        assert rewards.grad[i].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


def test_gradient_against_torchs_own() -> None:
    assert torch.autograd.gradcheck(lambda r: loss_of(r, SCORES, COUNTS, margin=0.3, centering=0.05), (tensor(REWARDS),))


def test_padding_changes_nothing() -> None:
    alone = loss_of(tensor(REWARDS[:2]), SCORES[:2], [2], centering=0.01)
    assert loss_of(tensor(REWARDS), SCORES, COUNTS, centering=0.01)[0].item() == pytest.approx(alone.item(), abs=1e-12)


def test_equal_scores_teach_nothing() -> None:
    rewards = tensor([1.0, -1.0, 3.0])
    loss = loss_of(rewards, [1, 1, 1], [3], centering=0.01)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert rewards.grad is not None
    assert not rewards.grad.any()

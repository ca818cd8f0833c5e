"""The contrastive loss: hand-worked, against torch, identities."""

import math

import torch
from torch.nn import functional as F

from mmalign.losses.contrastive import clip_loss


def test_hand_worked_value() -> None:
    # Rows: log(1 + e^-2) and log(1 + e^-1); columns: log(1 + e^-1) and log(1 + e^-2).
    logits = torch.tensor([[2.0, 0.0], [1.0, 2.0]])
    row = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1))]
    column = [math.log1p(math.exp(-1)), math.log1p(math.exp(-2))]
    expected = torch.tensor([(a + b) / 2 for a, b in zip(row, column, strict=True)])
    torch.testing.assert_close(clip_loss(logits, torch.arange(2)), expected)


def test_distinct_texts_are_cross_entropy_both_ways() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).mul(4)
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.t(), torch.arange(5))) / 2
    torch.testing.assert_close(clip_loss(logits, torch.arange(5)).mean(), expected)


def test_equal_texts_share_the_target() -> None:
    """Two images with the same caption: any split of the mass between the two copies costs at least log 2 a row."""
    logits = torch.tensor([[30.0, 30.0, 0.0], [30.0, 30.0, 0.0], [0.0, 0.0, 30.0]])
    expected = torch.tensor([math.log(2), math.log(2), 0.0])
    torch.testing.assert_close(clip_loss(logits, torch.tensor([7, 7, 9])), expected, rtol=0, atol=1e-6)


def test_gradient_is_correct() -> None:
    logits = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    keys = torch.tensor([0, 1, 0])
    # Computed in float32, so the numeric derivative has float32's noise.
    assert torch.autograd.gradcheck(lambda x: clip_loss(x, keys), (logits,), eps=1e-2, atol=1e-3, rtol=1e-2)

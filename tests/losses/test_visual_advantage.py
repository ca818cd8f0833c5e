"""Weights by visual advantage, worked by hand."""

import pytest
import torch

from mmalign.losses.visual_advantage import answer_weights, group_weights


def test_group_weights_by_hand() -> None:
    """Five tokens of one answer, one of another, two of a third, none of a fourth.

    A share of 0.4 is two of five: 5 / (2 * 2) = 1.25 each, and 5 / (2 * 3) the others. Of two, 0.8 rounds to one.
    """
    advantage = torch.tensor([0.1, 3.0, -1.0, 0.5, 0.1, 9.0, 0.2, 0.3])
    answer = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2])
    weights, top = group_weights(advantage, answer, num_answers=4, share=0.4)
    low = 5 / 6
    torch.testing.assert_close(weights, torch.tensor([low, 1.25, low, 1.25, low, 1.0, 1.0, 1.0]))
    assert top.tolist() == [False, True, False, True, False, True, False, True]
    weights, top = group_weights(advantage[:5], answer[:5], num_answers=1, share=0.1)
    torch.testing.assert_close(weights, torch.tensor([0.625, 2.5, 0.625, 0.625, 0.625]))
    assert top.tolist() == [False, True, False, False, False]
    # However much is asked for, one is left.
    weights, _ = group_weights(advantage[:5], answer[:5], num_answers=1, share=0.99)
    torch.testing.assert_close(weights, torch.tensor([0.625, 0.625, 2.5, 0.625, 0.625]))


def test_a_mean_by_groups_is_the_mean_of_the_groups_means() -> None:
    """Answers of interleaved tokens, in any order."""
    generator = torch.Generator().manual_seed(0)
    advantage, divergence = torch.randn(40, generator=generator), torch.rand(40, generator=generator)
    answer = torch.randint(0, 3, (40,), generator=generator)
    weights, top = group_weights(advantage, answer, num_answers=3, share=0.25)
    for number in range(3):
        own = answer == number
        assert top[own].sum() == round(0.25 * int(own.sum()))
        assert advantage[own & top].min() > advantage[own & ~top].max()
        expected = (divergence[own & top].mean() + divergence[own & ~top].mean()) / 2
        torch.testing.assert_close((weights * divergence)[own].mean(), expected)


def test_answer_weights_by_hand() -> None:
    """Mean advantages of ln 3, 0 and -ln 3: twice 3/4, 1/2 and 1/4."""
    three = float(torch.tensor(3.0).log())
    weights = answer_weights(torch.tensor([0.0, 2 * three, 0.0, -three]), torch.tensor([0, 0, 1, 2]), num_answers=4)
    assert weights.tolist() == pytest.approx([1.5, 1.5, 1.0, 0.5])


def test_no_tokens() -> None:
    empty = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    assert len(group_weights(*empty, num_answers=2, share=0.2)[0]) == len(answer_weights(*empty, num_answers=2)) == 0

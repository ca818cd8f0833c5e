"""DPO and difficulty coefficients: hand-worked values, a second derivation, identities, errors."""

import math

import pytest
import torch
from torch import Tensor

from mmalign.losses.preference import PairLogps, compute_margin, difficulty_coefficients, dpo_loss


def pairs(*values: tuple[float, float], dtype: torch.dtype = torch.float32) -> PairLogps:
    chosen, rejected = zip(*values, strict=True)
    return PairLogps(torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype))


def test_hand_worked_value() -> None:
    # margin = (-10 - -12) - (-20 - -15) = 2 + 5 = 7; loss = -log sigmoid(0.1 * 7) = log(1 + e^-0.7) = 0.403186
    loss = dpo_loss(pairs((-10.0, -20.0)), pairs((-12.0, -15.0)), beta=0.1)
    torch.testing.assert_close(loss, torch.tensor([0.403186]), rtol=0, atol=1e-6)


def test_second_derivation() -> None:
    """The loss as the negative log of Bradley-Terry's probability over two implicit rewards."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (PairLogps(*torch.randn(2, 8, generator=generator).mul(5)) for _ in range(2))
    rewards = 0.3 * torch.stack([policy.chosen - reference.chosen, policy.rejected - reference.rejected])
    expected = -rewards.softmax(0)[0].log()
    torch.testing.assert_close(dpo_loss(policy, reference, beta=0.3), expected)


def test_gradient_is_correct() -> None:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    reference = pairs((-1.0, 0.5), (0.2, 0.1), (0.0, -2.0))

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return dpo_loss(PairLogps(chosen, rejected), reference, beta=torch.tensor([0.1, 0.2, 1.5]))

    # The loss runs in float32 whatever comes in, so the numeric derivative has float32's noise.
    assert torch.autograd.gradcheck(loss, values, eps=1e-2, atol=1e-3, rtol=1e-2)


def test_gradient_at_zero_margin() -> None:
    chosen = torch.zeros(1, requires_grad=True)
    dpo_loss(PairLogps(chosen, torch.zeros(1)), pairs((0.0, 0.0)), beta=0.4).sum().backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.2]))


def test_swapping_the_pair_mirrors_the_margin() -> None:
    policy, reference = pairs((-3.0, -4.5), (-1.0, -9.0)), pairs((-2.0, -2.5), (-6.0, -1.0))
    swapped = compute_margin(PairLogps(policy.rejected, policy.chosen), PairLogps(reference.rejected, reference.chosen))
    torch.testing.assert_close(swapped, -compute_margin(policy, reference), rtol=0, atol=0)


def test_reference_equal_to_policy_gives_log_two() -> None:
    policy = pairs((-3.0, -4.5), (-1.0, -9.0))
    torch.testing.assert_close(dpo_loss(policy, policy, beta=0.7), torch.full((2,), math.log(2)))


def test_no_pairs_give_no_losses() -> None:
    empty = PairLogps(torch.zeros(0), torch.zeros(0))
    assert dpo_loss(empty, empty, beta=0.1).shape == (0,)


def test_beta_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta has shape \(3,\); expected one value a pair, \(1,\)"):
        dpo_loss(pairs((0.0, 0.0)), pairs((0.0, 0.0)), beta=torch.ones(3))


DIFFICULTY = torch.tensor([0.0, 0.5, 1.0, 0.7])


@pytest.mark.parametrize(
    ("mode", "beta", "weight"),
    [
        ("off", [0.1, 0.1, 0.1, 0.1], [1, 1, 1, 1]),
        ("paper", [0.2, 0.15, 0.1, 0.13], [1, 1, 1, 1]),
        # mean easiness 0.45
        ("paper-norm", [0.2 / 1.45, 0.15 / 1.45, 0.1 / 1.45, 0.13 / 1.45], [1, 1, 1, 1]),
        # mean difficulty 0.55
        ("loss-weight", [0.1, 0.1, 0.1, 0.1], [0, 0.5 / 0.55, 1 / 0.55, 0.7 / 0.55]),
    ],
)
def test_hand_worked_coefficients(mode: str, beta: list[float], weight: list[float]) -> None:
    got = difficulty_coefficients(DIFFICULTY, beta=0.1, mode=mode)  # type: ignore[arg-type]
    torch.testing.assert_close(got.beta, torch.tensor(beta))
    torch.testing.assert_close(got.weight, torch.tensor(weight, dtype=torch.float32))


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("mode", ["off", "paper-norm", "loss-weight", "paper"])
def test_equal_difficulties_are_plain_dpo_exactly(mode: str, value: float) -> None:
    got = difficulty_coefficients(torch.full((7,), value), beta=0.1, mode=mode)  # type: ignore[arg-type]
    # "paper" raises the mean beta by design: all pairs then share one beta, which is plain DPO at that beta.
    easiness = 1 - torch.tensor(value).double()
    plain = (0.1 * (1 + easiness)).float() if mode == "paper" else torch.tensor(0.1)
    assert torch.equal(got.beta, plain.expand(7))
    assert torch.equal(got.weight, torch.ones(7))


def test_paper_norm_keeps_the_mean_beta_and_loss_weight_the_mean_weight() -> None:
    difficulty = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert difficulty_coefficients(difficulty, beta=0.1, mode="paper-norm").beta.mean().item() == pytest.approx(0.1, abs=1e-6)
    assert difficulty_coefficients(difficulty, beta=0.1, mode="loss-weight").weight.mean().item() == pytest.approx(1, abs=1e-5)


def test_no_gradient_reaches_difficulty() -> None:
    difficulty = DIFFICULTY.clone().requires_grad_()
    got = difficulty_coefficients(difficulty, beta=0.1, mode="paper")
    assert not got.beta.requires_grad
    assert not got.weight.requires_grad


def test_where_an_easy_pair_gets_the_smaller_gradient() -> None:
    """Doubling beta shrinks the gradient only once beta * margin exceeds ln(1 + sqrt 2) = 0.8814."""
    threshold = math.log(1 + math.sqrt(2)) / 0.1
    for margin, doubled_is_smaller in ((threshold - 0.1, False), (threshold + 0.1, True)):
        gradients = []
        for beta in (0.1, 0.2):
            chosen = torch.tensor([margin], requires_grad=True)
            dpo_loss(PairLogps(chosen, torch.zeros(1)), pairs((0.0, 0.0)), beta=beta).sum().backward()
            assert chosen.grad is not None
            gradients.append(chosen.grad.abs().item())
        assert (gradients[1] < gradients[0]) is doubled_is_smaller


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_difficulty_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"difficulty of row 1 is .*; expected a number in \[0, 1\]"):
        difficulty_coefficients(torch.tensor([0.5, value]), beta=0.1, mode="paper")


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="difficulty mode is 'papr'; expected one of off, paper, paper-norm, loss-weight"):
        difficulty_coefficients(DIFFICULTY, beta=0.1, mode="papr")  # type: ignore[arg-type]

"""What data says about a pair or list, as numbers: difficulty, margin weights, labels, visits, ranks, targets."""

import math

import pytest
import torch
from torch import Tensor

from mmalign.losses.coefficients import (
    anchored_target,
    difficulty_coefficients,
    discount_weights,
    margin_weight,
    preference_probability,
    rank_by,
    step_similarity,
    swap_weights,
    visit_flip,
)
from mmalign.losses.pair_kernel import PairObjective, PairValues, preference_loss

F64 = torch.float64
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
        ("both", [0.2, 0.15, 0.1, 0.13], [0, 0.5 / 0.55, 1 / 0.55, 0.7 / 0.55]),
    ],
)
def test_hand_worked_coefficients(mode: str, beta: list[float], weight: list[float]) -> None:
    got = difficulty_coefficients(DIFFICULTY, beta=0.1, mode=mode)  # type: ignore[arg-type]
    torch.testing.assert_close(got.beta, torch.tensor(beta))
    torch.testing.assert_close(got.weight, torch.tensor(weight, dtype=torch.float32))


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("mode", ["off", "paper-norm", "loss-weight", "paper", "both"])
def test_equal_difficulties_are_plain_dpo_exactly(mode: str, value: float) -> None:
    got = difficulty_coefficients(torch.full((7,), value), beta=0.1, mode=mode)  # type: ignore[arg-type]
    # "paper" and "both" raise the mean beta by design: all pairs then share one beta, which is plain DPO at that beta.
    easiness = 1 - torch.tensor(value).double()
    plain = (0.1 * (1 + easiness)).float() if mode in ("paper", "both") else torch.tensor(0.1)
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
        for beta_scale in (1.0, 2.0):
            chosen = torch.tensor([margin], requires_grad=True)
            preference_loss(PairObjective(beta=0.1), PairValues(chosen, torch.zeros(1)), beta_scale=beta_scale).sum().backward()
            assert chosen.grad is not None
            gradients.append(chosen.grad.abs().item())
        assert (gradients[1] < gradients[0]) is doubled_is_smaller


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_difficulty_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"difficulty of row 1 is .*; expected a number in \[0, 1\]"):
        difficulty_coefficients(torch.tensor([0.5, value]), beta=0.1, mode="paper")


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="difficulty mode is 'papr'; expected one of off, paper, paper-norm, loss-weight, both"):
        difficulty_coefficients(DIFFICULTY, beta=0.1, mode="papr")  # type: ignore[arg-type]


def madpo_weight(*gaps: float) -> Tensor:
    return margin_weight(torch.tensor(gaps, dtype=F64), strongest=2.0, weakest=0.5, steepness=1.0, turning_gap=math.log(999))


@pytest.mark.parametrize(
    ("gap", "weight"),
    [
        (-8.0, 1.0),
        (-2.0, 0.157505670124),
        (0.0, 1.0),
        (0.5, 1.173688211660),
        (3.0, 1.046699595090),
        (math.log(999), 1.0),
        (10.0, 0.995236998197),
    ],
)
def test_madpo_weight_by_hand(gap: float, weight: float) -> None:
    assert madpo_weight(gap).item() == pytest.approx(weight, abs=1e-9)


@pytest.mark.parametrize("gap", [0.3, 1.0, 4.0])
def test_madpo_moves_the_optimum_to_strength_times_gap(gap: float) -> None:
    """With Bradley-Terry labels of this gap, the mean weighted loss has its minimum at the margin c(|m|) m."""
    right, flipped = madpo_weight(gap, -gap).tolist()
    p = 1 / (1 + math.exp(-gap))
    optimum = math.log(p * right / ((1 - p) * flipped))
    strength = 0.5 + 1.5 / (1 + 2 * math.exp(gap - math.log(999)))
    assert optimum == pytest.approx(strength * gap, abs=1e-9)


def test_madpo_spans_what_it_spans() -> None:
    """With the paper's numbers an agreeing pair weighs at most 1.206: it is the disagreeing ones that lose their say."""
    weights = madpo_weight(*[i / 1000 for i in range(-9000, 12001)])
    assert weights.max().item() == pytest.approx(1.205980438630, abs=1e-9)
    assert weights.min().item() == pytest.approx(0.031340065986, abs=1e-9)
    assert torch.isfinite(madpo_weight(-1e4, 1e4)).all()


@pytest.mark.parametrize(("name", "value"), [("strongest", 0.9), ("weakest", 1.1), ("steepness", 0.0), ("turning_gap", -1.0)])
def test_madpo_parameters_outside_their_range(name: str, value: float) -> None:
    parameters = {"strongest": 2.0, "weakest": 0.5, "steepness": 1.0, "turning_gap": 7.0, name: value}
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        margin_weight(torch.zeros(1), **parameters)


def test_probability_and_visits_by_hand() -> None:
    gaps = torch.tensor([0.0, math.log(4), -2 * math.log(4)], dtype=F64)
    torch.testing.assert_close(preference_probability(gaps, temperature=1.0), torch.tensor([0.5, 0.8, 1 / 17], dtype=F64))
    torch.testing.assert_close(preference_probability(gaps, temperature=2.0)[2], torch.tensor(0.2, dtype=F64))
    chosen, rejected = torch.tensor([12, 10, 3, 0, 5]), torch.tensor([4, 9, 7, 0, 0])
    torch.testing.assert_close(visit_flip(chosen, rejected), torch.tensor([0.25, 9 / 19, 0.5, 0.5, 0.0]))
    with pytest.raises(ValueError, match="score_temperature is 0"):
        preference_probability(gaps, temperature=0.0)


MASK = torch.tensor([[True, True, True, True], [True, False, True, False]])


def test_ranks_put_absent_responses_last() -> None:
    values = torch.tensor([[0.1, 0.7, 0.7, 0.9], [0.2, math.nan, 0.3, 9.0]])
    assert rank_by(values, MASK)[0].tolist() == [4, 2, 3, 1]
    assert rank_by(values, MASK)[1, [0, 2]].tolist() == [2, 1]


def test_gain_and_discount_by_hand() -> None:
    """Grades 2, 1, 0 at ranks 1, 2, 3: 3 / log2(2), 1 / log2(3), 0."""
    got = discount_weights(torch.tensor([[2.0, 1.0, 0.0]], dtype=F64), torch.tensor([[1, 2, 3]]))
    torch.testing.assert_close(got, torch.tensor([[3.0, 1 / math.log2(3), 0.0]], dtype=F64))


def test_swap_weights_by_hand() -> None:
    """Two items, v = (1, 0): |2 - 1| |1 / ln 2 - 1 / ln 3| = 0.532455814262."""
    got = swap_weights(torch.tensor([[1.0, 0.0]], dtype=F64), torch.tensor([[1, 2]]))
    torch.testing.assert_close(got, 0.532455814262 * torch.tensor([[[0.0, 1.0], [1.0, 0.0]]], dtype=F64))


def test_anchored_target_by_hand() -> None:
    """Scores 1, 0.5, 0 have mean 0.5 and deviation 0.5: z = 1, 0, -1, and softmax(z / 0.5) = (e^2, 1, e^-2) / 8.524391."""
    scores = torch.tensor([[1.0, 0.5, 0.0, math.nan], [3.0, math.nan, 3.0, math.nan], [1.0, 2.0, 3.0, 4.0]], dtype=F64)
    mask = torch.tensor([[True, True, True, False], [True, False, True, False], [False] * 4])
    got = anchored_target(scores, mask, temperature=0.5)
    total = math.e**2 + 1 + math.e**-2
    expected = [[math.e**2 / total, 1 / total, math.e**-2 / total, 0], [0.5, 0, 0.5, 0], [0.0] * 4]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="score_temperature is -1"):
        anchored_target(scores, mask, temperature=-1)


def test_step_similarity_is_one_plus_the_cosine() -> None:
    step = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    best = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    torch.testing.assert_close(step_similarity(step, best), torch.tensor([2.0, 1 + math.sqrt(0.5), 0.0]))

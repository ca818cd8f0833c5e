"""Image losses: the published numbers, the formulas again in plain floats, gradients, identities."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.denoisers.losses import log_ratio, mean_square, step_error
from mmalign.denoisers.objectives import PICKSCORE_RANGE, RANK_OBJECTIVES, list_loss, pair_loss, parse_pair_objective
from mmalign.errors import UserError

F64 = torch.float64
# Mean squared errors of a chosen and a rejected image under the policy, and under the reference.
POLICY, REFERENCE = [0.200, 0.350], [0.220, 0.330]


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def loss_of(text: str, h: Tensor, *, scores: tuple[float, float] | None = None) -> Tensor:
    objective = parse_pair_objective(text, beta=None).objective
    columns = {} if scores is None else {"score_chosen": numbers(scores[0]), "score_rejected": numbers(scores[1])}
    return pair_loss(objective, h, columns)[0].sum()


def test_diffusion_dpo_at_half_the_published_beta() -> None:
    """Beta 100: -log sigmoid(-100 / 2 [(m_w - r_w) - (m_l - r_l)]), z = 2."""
    policy = numbers(*POLICY).requires_grad_()
    loss = loss_of("dpo:beta=50", log_ratio(policy, numbers(*REFERENCE)))
    loss.backward()
    assert loss.item() == pytest.approx(0.126928011043, abs=1e-12)
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([5.960146101106, -5.960146101106], abs=1e-11)


def test_smpo_at_five_times_the_published_beta() -> None:
    """At p = .8, ten times 2 p - 1 is 6, half of which is Diffusion-DPO's own."""
    h = log_ratio(numbers(*POLICY), numbers(*REFERENCE))
    loss = loss_of("smpo:beta=500", h, scores=(math.log(4), 0.0))
    assert loss.item() == pytest.approx(6.144193477733e-06, abs=1e-17)
    assert loss.item() == pytest.approx(softplus(-0.5 * 100 * 6 * 0.04), rel=1e-11)


def test_smpo_probability_of_raw_pickscores() -> None:
    """Softmax over min-max normalised scores: a loss of p = .559744 at an outer loss that shows 2 p - 1."""
    probability = 1 / (1 + math.exp(-(0.25 - 0.21) / PICKSCORE_RANGE))
    assert probability == pytest.approx(0.559744261582, abs=1e-12)
    loss = loss_of(f"smpo:beta=500,score_temperature={PICKSCORE_RANGE}", numbers(0.02, -0.02), scores=(0.25, 0.21))
    assert loss.item() == pytest.approx(softplus(-0.5 * 100 * 10 * (2 * probability - 1) * 0.04), rel=1e-11)


@pytest.mark.parametrize(("weight", "value"), [(1, 0.514674965501), (4, 0.279728699862)])
def test_ddo(weight: int, value: float) -> None:
    loss = loss_of(f"ddo:beta=50,rejected_weight={weight}", numbers(0.02, -0.03)).item()
    assert loss == pytest.approx(value, abs=1e-12)
    assert loss == pytest.approx((softplus(-1.0) + weight * softplus(-1.5)) / max(1, weight), abs=1e-12)


def test_d3po() -> None:
    """One pixel: [(.30 - .10)^2 - (.30 - .25)^2] / (2 .2^2); then two paths' ratios, clipped at 1 +- .1."""
    pixel = [torch.full((1, 1, 1, 1), value, dtype=F64) for value in (0.30, 0.25, 0.10)]
    policy, reference = (step_error(pixel[0], mean, numbers(0.2)) for mean in pixel[1:])
    assert log_ratio(policy, reference).item() == pytest.approx(0.46875, abs=1e-12)
    loss = loss_of("clipped_dpo:beta=0.1,clip_range=0.1", numbers(-0.01125, -0.055)).item()
    assert loss == pytest.approx(0.690962073136, abs=1e-12)
    clipped = [math.log(min(max(math.exp(h), 0.9), 1.1)) for h in (0.46875, -0.055)]
    assert loss_of("clipped_dpo:beta=0.1,clip_range=0.1", numbers(0.46875, -0.055)).item() == pytest.approx(
        softplus(-0.1 * (clipped[0] - clipped[1])), abs=1e-12
    )


def test_log_ratio_of_a_step_is_that_of_two_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    reached, policy, reference = torch.randn(3, 2, 3, 4, 4, generator=generator, dtype=F64)
    sigma = torch.tensor([0.3, 0.7], dtype=F64).view(2, 1, 1, 1)
    logps = [torch.distributions.Normal(mean, sigma).log_prob(reached) for mean in (policy, reference)]
    ratio = log_ratio(step_error(reached, policy, sigma), step_error(reached, reference, sigma))
    torch.testing.assert_close(ratio, (logps[0] - logps[1]).flatten(1).mean(1))


M, R, PSI = [0.26, 0.20, 0.35], [0.25, 0.22, 0.33], [0.9, 0.6, 0.2]


def by_hand(rewards: list[float], ranked: list[float]) -> float:
    """Every two images: |2^a - 2^b| |1 / ln(1 + k_a) - 1 / ln(1 + k_b)| softplus(-(r_a - r_b)), a the better."""
    rank = {i: 1 + k for k, i in enumerate(sorted(range(3), key=lambda i: -ranked[i]))}
    total = 0.0
    for i, j in itertools.permutations(range(3), 2):
        if PSI[i] > PSI[j]:
            change = abs(2 ** PSI[i] - 2 ** PSI[j]) * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
            total += change * softplus(rewards[j] - rewards[i])
    return total


@pytest.mark.parametrize(("ranks", "value"), [("reward", 0.415234734062), ("score", 0.571511894642)])
def test_rank_dpo(ranks: str, value: float) -> None:
    policy = numbers(*M).requires_grad_()
    objective = RANK_OBJECTIVES.parse(f"rank:ranked_by={ranks}", beta=50).objective
    loss = list_loss(objective, log_ratio(policy, numbers(*R)), numbers(*PSI), torch.tensor([3])).sum()
    rewards = [-50 * (m - r) for m, r in zip(M, R, strict=True)]
    assert loss.item() == pytest.approx(value, abs=1e-12)
    assert loss.item() == pytest.approx(by_hand(rewards, rewards if ranks == "reward" else PSI), abs=1e-12)
    loss.backward()
    assert policy.grad is not None
    assert policy.grad[0] > 0 > policy.grad[2]


def test_lists_of_different_lengths_do_not_touch() -> None:
    objective = RANK_OBJECTIVES.parse("rank", beta=50).objective
    h = -(numbers(*M) - numbers(*R))
    both = list_loss(objective, torch.cat([h, h[:2]]), numbers(*PSI, *PSI[:2]), torch.tensor([3, 2]))
    torch.testing.assert_close(both[:1], list_loss(objective, h, numbers(*PSI), torch.tensor([3])))
    torch.testing.assert_close(both[1:], list_loss(objective, h[:2], numbers(*PSI[:2]), torch.tensor([2])))


GRADIENTS: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "dpo": (lambda h: loss_of("dpo:beta=50", h), (numbers(0.02, -0.03),)),
    "smpo": (lambda h: loss_of("smpo:beta=50", h, scores=(1.0, 0.2)), (numbers(0.02, -0.03),)),
    "ddo": (lambda h: loss_of("ddo:beta=50,rejected_weight=4", h), (numbers(0.02, -0.03),)),
    "clipped_dpo": (lambda h: loss_of("clipped_dpo:beta=0.1", h), (numbers(0.02, -0.03),)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_is_correct(name: str) -> None:
    function, (h,) = GRADIENTS[name]
    assert torch.autograd.gradcheck(function, (h.requires_grad_(),))


def test_gradient_to_the_predictions() -> None:
    """Through both errors to the policy's prediction, against the derivative by hand: 2 (p - y) / pixels, times the loss's."""
    generator = torch.Generator().manual_seed(1)
    prediction, reference, target = torch.randn(3, 2, 1, 2, 2, generator=generator, dtype=F64)
    prediction.requires_grad_()
    h = log_ratio(mean_square(prediction - target), mean_square(reference - target))
    loss_of("dpo:beta=3", h).backward()
    slope = -3 / (1 + math.exp(3 * (h[0] - h[1]).item()))
    expected = -slope * torch.tensor([1.0, -1.0], dtype=F64).view(2, 1, 1, 1) * 2 * (prediction - target).detach() / 4
    torch.testing.assert_close(prediction.grad, expected)


@pytest.mark.parametrize("text", ["dpo", "smpo", "clipped_dpo:beta=1"])
def test_a_policy_that_is_its_reference_loses_ln_2(text: str) -> None:
    same = numbers(0.3, 0.4)
    loss = loss_of(text, log_ratio(same, same), scores=(1.0, 0.0))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("simpo", "without a reference"),
        ("orpo", "without a reference"),
        ("ld_dpo", "weighs tokens"),
        ("ipo", "set --beta"),
        ("ddo", "set --beta"),
    ],
)
def test_what_images_have_no_counterpart_of_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_pair_objective(text, beta=None)


def test_betas_are_the_papers_unless_they_are_given() -> None:
    assert parse_pair_objective("dpo", beta=None).objective.beta == 2500
    assert parse_pair_objective("dpo", beta=7).objective.beta == 7
    assert parse_pair_objective("smpo:beta=3", beta=None).objective.beta == 3

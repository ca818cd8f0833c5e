"""Two policies that chase each other: the pair worked by hand, what each one's gradient is of, and what nothing is paid for."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from mmalign.losses.chasing import chase_loss, chase_terms, compute_lead
from mmalign.losses.pair_kernel import PairBatch, PairObjective, objective_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.scores import Logps, ScoredTokens
from tests.losses.pair_example import F64, random_pairs

DPO = PairObjective(beta=0.1)
TOKENS = ScoredTokens(torch.tensor([0, 1]), 2)


def sums(chosen: float, rejected: float) -> Tensor:
    return torch.tensor([chosen, rejected], dtype=F64, requires_grad=True)


def test_the_pair_worked_by_hand() -> None:
    """Margins over the reference: .1 (.8 + 1.2) = .2 and .1 (.5 + .9) = .14; the lead is .06; a is .1."""
    leader, chaser, reference = sums(-12.3, -15.2), sums(-12.6, -14.9), Logps(torch.tensor([-13.1, -14.0], dtype=F64))
    own = [objective_loss(DPO, PairBatch(TOKENS, Logps(value), reference)) for value in (leader, chaser)]
    lead = compute_lead(DPO, Logps(leader), Logps(chaser), TOKENS)
    assert lead.item() == pytest.approx(0.06, abs=1e-9)
    assert [value.item() for value in own] == pytest.approx([0.598138869382, 0.625595182337], abs=1e-9)
    assert chase_loss(lead).item() == pytest.approx(0.663597113076, abs=1e-9)
    totals = [own[0] + 0.1 * chase_loss(lead), own[1] - 0.1 * chase_loss(lead)]
    assert [value.item() for value in totals] == pytest.approx([0.664498580689, 0.559235471030], abs=1e-9)
    joint = own[0] + own[1] + 0.1 * chase_terms(DPO, Logps(leader), Logps(chaser), TOKENS)
    assert joint.item() == pytest.approx(sum(value.item() for value in totals), abs=1e-9)
    joint.backward()
    assert leader.grad is not None
    assert chaser.grad is not None
    assert leader.grad.tolist() == pytest.approx([-0.049866645253, 0.049866645253], abs=1e-9)
    assert chaser.grad.tolist() == pytest.approx([-0.051355750468, 0.051355750468], abs=1e-9)


@pytest.mark.parametrize("text", ["dpo", "ipo:beta=0.3", "simpo", "fdpo:divergence=forward-kl", "ld_dpo"])
def test_each_gradient_is_of_its_own_loss_alone(text: str) -> None:
    """Finite differences of the leader's + chase and of the chaser's - chase, the other policy held, for any score and link."""
    objective = PAIR_OBJECTIVES.parse(text).objective
    pairs = random_pairs(3)
    tokens = pairs.tokens
    values = [pairs.policy.token_logps.clone(), pairs.policy.token_logps.flip(0).clone()]  # type: ignore[union-attr]

    def logps(value: Tensor) -> Logps:
        return Logps(tokens.sums(value), value)

    def chase(value: Tensor, *, of: int) -> Tensor:
        both = [logps(one.detach()) for one in values]
        both[of] = logps(value)
        return (1 - 2 * of) * chase_loss(compute_lead(objective, *both, tokens)).sum()

    trained = [value.requires_grad_() for value in values]
    chase_terms(objective, *map(logps, trained), tokens).sum().backward()
    for number, value in enumerate(trained):
        one = value.detach().requires_grad_()
        assert torch.autograd.gradcheck(partial(chase, of=number), (one,))
        chase(one, of=number).backward()
        assert one.grad is not None
        assert one.grad.any()
        torch.testing.assert_close(value.grad, one.grad)


def test_alike_they_pay_ln_2_and_are_pushed_alike() -> None:
    leader, chaser = sums(-12.3, -15.2), sums(-12.3, -15.2)
    assert chase_loss(compute_lead(DPO, Logps(leader), Logps(chaser), TOKENS)).item() == pytest.approx(math.log(2), abs=1e-12)
    chase_terms(DPO, Logps(leader), Logps(chaser), TOKENS).sum().backward()
    assert leader.grad is not None
    assert leader.grad.tolist() == pytest.approx([-0.05, 0.05], abs=1e-12)
    assert torch.equal(leader.grad, chaser.grad)


@pytest.mark.parametrize(("lead", "paid"), [(10.5, math.log1p(math.exp(-10))), (-10.5, math.log1p(math.exp(10)))])
def test_nothing_is_paid_beyond_the_largest_lead(lead: float, paid: float) -> None:
    leader, chaser = sums(10 * lead - 15.2, -15.2), sums(-15.2, -15.2)
    assert chase_loss(compute_lead(DPO, Logps(leader), Logps(chaser), TOKENS)).item() == pytest.approx(paid, rel=1e-9)
    chase_terms(DPO, Logps(leader), Logps(chaser), TOKENS).sum().backward()
    assert leader.grad is not None
    assert not leader.grad.any()

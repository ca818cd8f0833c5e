"""Every pair objective: worked value, second derivation, gradient, independence of neighbours, pairs without tokens.

Identities stand in ``test_objective_identities.py``, equality with TRL in ``tests/recipes/test_trl.py``.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from mmalign.losses.image_objectives import IMAGE_OBJECTIVES
from mmalign.losses.pair_kernel import PairObjective, PairValues, objective_loss, preference_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.scores import Logps
from tests.losses.objective_cases import CASES, IDS, Case, as_sides
from tests.losses.pair_example import COLUMNS, F64, make_batch, random_pairs, take, worked_pair


def build(case: Case) -> PairObjective:
    return PAIR_OBJECTIVES.build(case.name, **case.parameters)


def test_every_objective_has_a_case() -> None:
    names = [name for name in PAIR_OBJECTIVES.names() if name not in IMAGE_OBJECTIVES]
    assert sorted({case.name for case in CASES}) == sorted(names)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_worked_value(case: Case) -> None:
    loss = objective_loss(build(case), worked_pair(**case.columns))
    assert loss.item() == pytest.approx(case.value, abs=1e-9)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_second_derivation(case: Case) -> None:
    """Pair by pair, because the baseline of kto_pair is its own test."""
    for seed in range(3):
        whole = random_pairs(seed=seed)
        for i, sides in enumerate(as_sides(whole)):
            batch = take(whole, [i])
            assert objective_loss(build(case), batch).item() == pytest.approx(case.formula(sides), abs=1e-9), (seed, i)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gradient(case: Case) -> None:
    batch, objective = random_pairs(3, seed=1), build(case)

    def loss(values: Tensor) -> Tensor:
        return objective_loss(objective, dataclasses.replace(batch, policy=Logps(batch.tokens.sums(values), values)))

    assert batch.policy.token_logps is not None
    values = batch.policy.token_logps.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (values,))
    if case.name != "clipped_dpo":
        # Some pair of it lies outside the clip, where there is none.
        assert torch.autograd.grad(loss(values).sum(), values)[0].abs().sum() > 0.01


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "kto_pair"], ids=[i for i in IDS if "kto" not in i])
def test_neighbours_change_nothing(case: Case) -> None:
    """The flat form of padding invariance: longer or more pairs in the batch leave a pair's loss alone."""
    whole = random_pairs(seed=2)
    expected = objective_loss(build(case), whole)[[3, 1]]
    torch.testing.assert_close(objective_loss(build(case), take(whole, [3, 1])), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_pairs_without_tokens(case: Case) -> None:
    """Nothing was scored: the loss is finite and has no gradient. And no pairs at all give no losses."""
    values = torch.zeros(0, dtype=F64, requires_grad=True)
    columns = {name: torch.ones(1, dtype=F64) for name in COLUMNS}
    batch = make_batch([values, values], [values.detach()] * 2, columns=columns)
    loss = objective_loss(build(case), batch)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    none = make_batch([], [], columns={name: column[:0] for name, column in columns.items()})
    assert objective_loss(build(case), none).shape == (0,)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_half_precision_is_lifted(case: Case) -> None:
    """Values that bfloat16 holds exactly give the same loss in bfloat16 and float32."""
    values = [torch.tensor(v) for v in ([-1.0, -0.5], [-2.0, -0.25, -1.5])]
    losses = []
    for dtype in (torch.bfloat16, torch.float32):
        policy, reference = ([v.to(dtype) + shift for v in values] for shift in (0.0, -0.5))
        batch = make_batch(policy, reference, columns={name: torch.ones(1) for name in COLUMNS})
        losses.append(objective_loss(build(case), batch))
    assert losses[0].dtype is torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-6)


def test_baseline_of_kto_pair_carries_no_gradient_unless_asked() -> None:
    """Detached, the gradient is the one at a baseline that is a number; otherwise it is the whole derivative (``test_gradient``)."""
    batch = random_pairs(seed=4)
    gradients = []
    for detach in (True, False):
        sums = batch.policy.sums.clone().requires_grad_()
        policy = Logps(sums, batch.policy.token_logps)
        objective = PAIR_OBJECTIVES.build("kto_pair", detach_baseline=detach)
        objective_loss(objective, dataclasses.replace(batch, policy=policy)).sum().backward()
        gradients.append(sums.grad)
    assert batch.reference is not None
    h = (batch.policy.sums - batch.reference.sums).view(-1, 2)
    baseline = (0.1 * h.mean(0)).clamp(min=0)
    chosen, rejected = torch.sigmoid(0.1 * h[:, 0] - baseline[1]), torch.sigmoid(baseline[0] - 0.1 * h[:, 1])
    expected = 0.05 * torch.stack([-chosen * (1 - chosen), rejected * (1 - rejected)], 1).flatten()
    torch.testing.assert_close(gradients[0], expected)
    assert baseline.max() > 0
    assert (gradients[1] - gradients[0]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("chosen", "rejected", "value"), [(0.0, 0.0, 0.5), (5.0, 3.0, 0.450166), (-30.0, -40.0, 0.485280), (30.0, 40.0, 0.731059)]
)
def test_kto_pair_saturates(chosen: float, rejected: float, value: float) -> None:
    """One pair by hand. Both above 0: sigmoid(-0.1 (h_w - h_l)). Both below: half of sigmoid(3) + sigmoid(-4)."""
    rewards = PairValues(torch.tensor([chosen], dtype=F64), torch.tensor([rejected], dtype=F64))
    assert preference_loss(PAIR_OBJECTIVES.build("kto_pair"), rewards).item() == pytest.approx(value, abs=1e-6)

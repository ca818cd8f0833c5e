"""DisCO and GRPO on groups of samples: worked values, second derivations, gradients, limits, padding, prompts without both kinds."""

import math

import pytest
import torch
from torch import Tensor

from mmalign.losses.list_kernel import ListBatch, ListObjective, list_objective_loss
from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.policy_gradient import squared_hinge_kl
from mmalign.losses.scores import Logps, ScoredTokens

F64 = torch.float64
S, RIGHT = [-0.62, -0.91, -0.70, -1.30], [1.0, 1.0, 0.0, 0.0]
LENGTHS = [2, 4, 3, 1, 5, 2]
COUNTS = [4, 2]
SCORES = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
NAMES = ["disco", "disco_b", "disco:score=ratio", "disco_b:score=ratio", "grpo", "grpo:variant=dr", "grpo:variant=dapo"]


def build(text: str) -> ListObjective:
    return LIST_OBJECTIVES.parse(text).objective


def compare(values: Tensor, scores: list[float], **parameters: float | None) -> Tensor:
    """The loss of one prompt from the scores of its responses."""
    objective = LIST_OBJECTIVES.build("disco", **parameters) if parameters else LIST_OBJECTIVES.build("disco_b")
    return objective.loss(values[None], torch.tensor([scores], dtype=F64), torch.ones(1, len(scores), dtype=torch.bool))[0]


def tokens_of(lengths: list[int]) -> ScoredTokens:
    return ScoredTokens(torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)), len(lengths))


def batch_of(
    policy: Tensor, old: Tensor, *, lengths: list[int] = LENGTHS, counts: list[int] = COUNTS, scores: list[float] = SCORES
) -> ListBatch:
    tokens = tokens_of(lengths)
    logps = [Logps(tokens.sums(values), values) for values in (policy, old)]
    return ListBatch(tokens, logps[0], logps[1], torch.tensor(counts), torch.tensor(scores, dtype=F64))


def random_logps(seed: int, near: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = -2 * torch.rand(sum(LENGTHS), generator=generator, dtype=F64)
    return old + near * torch.randn(sum(LENGTHS), generator=generator, dtype=F64), old


def expected_loss(name: str, new: list[list[float]], old: list[list[float]], scores: list[float]) -> float:
    """One prompt's loss, token by token in plain Python."""
    ratios = [[math.exp(a - b) for a, b in zip(x, y, strict=True)] for x, y in zip(new, old, strict=True)]
    if name.startswith("disco"):
        s = [sum(part) / len(part) for part in (ratios if "ratio" in name else new)]
        right, wrong = ([value for value, score in zip(s, scores, strict=True) if score == kind] for kind in (1.0, 0.0))
        if not right or not wrong:
            return 0.0
        if name.startswith("disco_b"):
            return sum(wrong) / len(wrong) - sum(right) / len(right)
        tau = 1.0 if "ratio" in name else 10.0
        return sum(tau * math.log(sum(math.exp((w - r) / tau) for w in wrong) / len(wrong)) for r in right) / len(right)
    mean = sum(scores) / len(scores)
    deviation = 1.0 if "dr" in name else math.sqrt(sum((one - mean) ** 2 for one in scores) / (len(scores) - 1)) + 1e-4
    high = 1.28 if "dapo" in name else 1.2
    total = 0.0
    for part, score in zip(ratios, scores, strict=True):
        a = (score - mean) / deviation
        promise = sum(min(rho * a, max(0.8, min(high, rho)) * a) for rho in part)
        total += promise / (256 if "dr" in name else sum(map(len, ratios)) / len(ratios) if "dapo" in name else len(part))
    return -total / len(scores)


def test_worked_values_of_disco() -> None:
    values = torch.tensor(S, dtype=F64)
    assert compare(values, RIGHT).item() == pytest.approx(-0.235, abs=1e-12)
    assert compare(values, RIGHT, temperature=10.0).item() == pytest.approx(-0.230500674838, abs=1e-12)
    values.requires_grad_()
    loss = compare(values, RIGHT, temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-0.190659230074, abs=1e-12)
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-0.5, -0.5, 0.645656306226, 0.354343693774], abs=1e-12)


def test_limits_of_the_temperature() -> None:
    values = torch.tensor(S, dtype=F64)
    assert compare(values, RIGHT, temperature=1e7).item() == pytest.approx(compare(values, RIGHT).item(), abs=1e-8)
    # The hardest wrong response alone, but for tau log 2.
    assert compare(values, RIGHT, temperature=1e-4).item() == pytest.approx(-0.70 - (-0.765) - 1e-4 * math.log(2), abs=1e-9)
    assert build("disco").loss is not None
    assert LIST_OBJECTIVES.parameters("disco_b").keys() == {"score", "kl_limit", "kl_weight"}


@pytest.mark.parametrize(("kl", "penalty", "factor"), [(2e-4, 5e-6, 0.1), (5e-5, 0.0, 0.0), (-1.0, 0.0, 0.0)])
def test_worked_values_of_the_penalty(kl: float, penalty: float, factor: float) -> None:
    log_ratios = torch.tensor([-kl], dtype=F64, requires_grad=True)
    value = squared_hinge_kl(log_ratios, limit=1e-4, strength=1000)
    value.backward()
    assert value.item() == pytest.approx(penalty, abs=1e-15)
    assert log_ratios.grad is not None
    assert -log_ratios.grad.item() == pytest.approx(factor, abs=1e-12)


def test_no_penalty_at_the_old_policy() -> None:
    _, old = random_logps(0)
    policy = old.clone().requires_grad_()
    constraint = build("disco").constraint
    assert constraint is not None
    value = constraint(batch_of(policy, old))
    value.backward()
    assert value.item() == 0
    assert policy.grad is not None
    assert policy.grad.abs().max() == 0
    # K is a mean over all tokens, not over responses.
    lower = old - torch.cat([torch.full((2,), 0.3, dtype=F64), torch.zeros(15, dtype=F64)])
    assert constraint(batch_of(lower, old)).item() == pytest.approx(500 * (0.6 / 17 - 1e-4) ** 2, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("near", [0.0, 0.5])
def test_second_derivation(name: str, near: float) -> None:
    policy, old = random_logps(1, near)
    got = list_objective_loss(build(name), batch_of(policy, old)).tolist()
    new, before = ([part.tolist() for part in values.split(LENGTHS)] for values in (policy, old))
    for place, part in enumerate((slice(0, 4), slice(4, 6))):
        assert got[place] == pytest.approx(expected_loss(name, new[part], before[part], SCORES[part]), abs=1e-10)


def test_worked_values_of_grpo() -> None:
    """Two responses of one token each: advantages +-1 / sqrt 2 (sample deviation), ratios 1.5 and .5, both beyond their bounds."""
    batch = batch_of(
        torch.tensor([math.log(1.5), math.log(0.5)], dtype=F64), torch.zeros(2, dtype=F64), lengths=[1, 1], counts=[2], scores=[1.0, 0.0]
    )
    # min(1.5 a, 1.2 a) for a > 0; min(.5 a, .8 a) = .8 a for a < 0.
    a = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert list_objective_loss(build("grpo"), batch).item() == pytest.approx(-(1.2 - 0.8) * a / 2, abs=1e-12)
    assert list_objective_loss(build("grpo:variant=dapo"), batch).item() == pytest.approx(-(1.28 - 0.8) * a / 2, abs=1e-12)
    assert list_objective_loss(build("grpo:variant=dr,max_tokens=8"), batch).item() == pytest.approx(-(1.2 - 0.8) * 0.5 / 2 / 8, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradient(name: str) -> None:
    policy, old = random_logps(2)
    objective = build(name)

    def total(values: Tensor) -> Tensor:
        batch = batch_of(values, old)
        added = objective.constraint(batch) if objective.constraint is not None else 0.0
        return list_objective_loss(objective, batch) + added

    # Far enough from the old policy for the penalty to act, where there is one.
    assert torch.autograd.gradcheck(total, ((policy - 0.3).requires_grad_(),))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("grpo")])
def test_grpo_starts_with_the_policy_gradient(name: str) -> None:
    """At the old policy nothing is clipped: the gradient of a token's log-probability is -A times its share."""
    _, old = random_logps(3)
    policy = old.clone().requires_grad_()
    list_objective_loss(build(name), batch_of(policy, old)).sum().backward()
    deviation = {4: math.sqrt(1 / 3), 2: math.sqrt(0.5)}
    expected = []
    for index, length in enumerate(LENGTHS):
        count, group = (4, LENGTHS[:4]) if index < 4 else (2, LENGTHS[4:])
        a = (SCORES[index] - 0.5) / (1.0 if "dr" in name else deviation[count] + 1e-4)
        share = 1 / (256 * count) if "dr" in name else 1 / sum(group) if "dapo" in name else 1 / (length * count)
        expected += [-a * share] * length
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_without_both_kinds_give_nothing(name: str) -> None:
    policy, old = random_logps(4)
    for scores in ([1.0] * 6, [0.0] * 6):
        values = policy.clone().requires_grad_()
        losses = list_objective_loss(build(name), batch_of(values, old, scores=scores))
        losses.sum().backward()
        assert losses.abs().max() < 1e-12
        assert values.grad is not None
        assert values.grad.abs().max() < 1e-12
    alone = list_objective_loss(build(name), batch_of(policy, old, counts=[5, 1]))
    assert alone[1] == 0
    assert alone[0] != 0


@pytest.mark.parametrize("name", ["disco", "disco_b", "grpo"])
def test_padding_changes_nothing(name: str) -> None:
    values, scores = torch.tensor([S], dtype=F64), torch.tensor([RIGHT], dtype=F64)
    objective = build(name)
    expected = objective.loss(values, scores, torch.ones(1, 4, dtype=torch.bool))
    places = [0, 2, 3, 5]
    wide, wide_scores, mask = torch.full((1, 7), math.nan, dtype=F64), torch.full((1, 7), math.nan, dtype=F64), torch.zeros(1, 7).bool()
    wide[:, places], wide_scores[:, places], mask[:, places] = values, scores, True
    got = objective.loss(wide.requires_grad_(), wide_scores, mask)
    got.sum().backward()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert wide.grad is not None
    assert torch.isfinite(wide.grad).all()
    assert wide.grad[~mask].abs().sum() == 0


def test_parameters_outside_their_range() -> None:
    for text, message in (
        ("disco:temperature=0", "temperature is 0.0"),
        ("disco:temperature=hot", "disco: temperature is 'hot'; expected a float"),
        ("disco:score=sum", "disco: score is 'sum'; expected one of logl, ratio"),
        ("disco:kl_limit=-1", "kl_limit is -1.0"),
        ("grpo:clip_low=1", "clip_low is 1.0"),
        ("grpo:max_tokens=0", "max_tokens is 0.0"),
        ("grpo:variant=po", "expected one of grpo, dr, dapo"),
    ):
        with pytest.raises(ValueError, match=message):
            LIST_OBJECTIVES.parse(text)


def test_what_is_asked_of_the_old_policy() -> None:
    assert not build("disco:kl_weight=0").uses_reference
    assert build("disco:kl_weight=0,score=ratio").needs_tokens
    assert build("disco").needs_tokens
    assert build("grpo").uses_reference

"""Every list objective: worked value, second derivation, gradient, identity with pairs, padding, rows with nothing to compare."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mmalign.losses.group_objectives import GROUP_OBJECTIVES
from mmalign.losses.list_kernel import ListBatch, ListObjective, compute_list_rewards, list_objective_loss, pad_lists
from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.pair_kernel import PairValues, preference_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.scores import Logps, ScoredTokens

F64 = torch.float64
# The worked pair's log-ratios with a third response's between them.
H = [0.8, 0.1, -1.2]
SCORES = [1.0, 0.5, 0.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def softmax(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


def anchored(h: list[float], scores: list[float], tau: float, score_temperature: float) -> float:
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) + 1e-8
    target = softmax([(s - mean) / deviation / score_temperature for s in scores])
    return -sum(q * math.log(p) for q, p in zip(target, softmax([value / tau for value in h]), strict=True))


def plackett_luce(h: list[float], scores: list[float], beta: float) -> float:
    """-log of the probability of the best order, by chance of drawing each response from those that are left."""
    rewards = [beta * value for _, value in sorted(zip(scores, h, strict=True), key=lambda item: -item[0])]
    probability = math.prod(math.exp(rewards[i]) / sum(map(math.exp, rewards[i:])) for i in range(len(rewards)))
    return -math.log(probability)


def in_context(h: list[float], scores: list[float], beta: float) -> float:
    rank = {i: 1 + k for k, i in enumerate(sorted(range(len(h)), key=lambda i: -scores[i]))}
    total = 0.0
    for i in range(len(h)):
        others = [math.exp(beta * (h[j] - h[i])) for j in range(len(h)) if j != i]
        total += (2 ** scores[i] - 1) / math.log2(1 + rank[i]) * math.log(1 + sum(others) / len(others))
    return total / len(h)


def tree(h: list[float], scores: list[float], beta: float, weighted: bool = True, *, by: list[float] | None = None) -> float:
    rank = {i: 1 + k for k, i in enumerate(sorted(range(len(h)), key=lambda i: -(by or h)[i]))}
    total = 0.0
    for i, j in itertools.permutations(range(len(h)), 2):
        if scores[i] > scores[j]:
            gain = abs(2 ** scores[i] - 2 ** scores[j]) * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
            total += (gain if weighted else 1) * softplus(-beta * (h[i] - h[j]))
    return total


class Case(NamedTuple):
    name: str
    parameters: dict[str, Any]
    scores: list[float]
    value: float
    formula: Callable[[list[float], list[float]], float]


CASES = [
    Case("adpo", {"temperature": 0.8}, SCORES, 0.547100104522, lambda h, s: anchored(h, s, 0.8, 0.5)),
    Case("adpo", {"temperature": 1.0, "score_temperature": 1.0}, SCORES, 0.841128679171, lambda h, s: anchored(h, s, 1.0, 1.0)),
    Case("plackett_luce", {}, SCORES, 1.642267958399, lambda h, s: plackett_luce(h, s, 0.1)),
    Case("irpo", {"beta": 0.1}, [2.0, 1.0, 0.0], 0.772070920226, lambda h, s: in_context(h, s, 0.1)),
    Case("irpo", {}, [2.0, 1.0, 0.0], 1.304640755957 / 3, lambda h, s: in_context(h, s, 1.0)),
    Case("tpo", {"beta": 0.1}, SCORES, 0.686249000099, lambda h, s: tree(h, s, 0.1)),
    Case("tpo", {"beta": 0.1, "weighted": False}, SCORES, 1.887156619612, lambda h, s: tree(h, s, 0.1, weighted=False)),
    Case("rank_dpo", {}, SCORES, 0.686249000099, lambda h, s: tree(h, s, 0.1)),
    Case("rank_dpo", {"ranked_by": "score"}, SCORES, 0.686249000099, lambda h, s: tree(h, s, 0.1, by=s)),
]
IDS = [f"{case.name}-{i}" for i, case in enumerate(CASES)]


def build(case: Case) -> ListObjective:
    return LIST_OBJECTIVES.build(case.name, **case.parameters)


def list_loss(case: Case, h: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    objective = build(case)
    return objective.loss(objective.beta * h, scores, mask)


def random_lists(seed: int, number: int = 4) -> tuple[Tensor, Tensor]:
    """Log-ratios and scores on which no two are equal; scores in [0, 1] suit every objective."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(3, number, generator=generator, dtype=F64), torch.rand(3, number, generator=generator, dtype=F64)


def test_every_objective_has_a_case() -> None:
    """Those of groups have theirs in ``test_groups.py``."""
    assert [*dict.fromkeys(case.name for case in CASES), *GROUP_OBJECTIVES] == LIST_OBJECTIVES.names()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_worked_value(case: Case) -> None:
    h, scores = torch.tensor([H], dtype=F64), torch.tensor([case.scores], dtype=F64)
    assert list_loss(case, h, scores, torch.ones(1, 3, dtype=torch.bool)).item() == pytest.approx(case.value, abs=1e-9)


@pytest.mark.parametrize("number", [2, 3, 6])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_second_derivation(case: Case, number: int) -> None:
    h, scores = random_lists(1, number)
    got = list_loss(case, h, scores, torch.ones_like(h, dtype=torch.bool))
    for i in range(len(h)):
        assert got[i].item() == pytest.approx(case.formula(h[i].tolist(), scores[i].tolist()), abs=1e-9)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gradient(case: Case) -> None:
    h, scores = random_lists(2)
    mask = torch.tensor([[True] * 4, [True, False, True, True], [False, True, True, False]])
    assert torch.autograd.gradcheck(lambda values: list_loss(case, values, scores, mask), (h.requires_grad_(),))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_padding_changes_nothing(case: Case) -> None:
    """NaN where there is no response, at the end or between, reaches neither values nor gradients."""
    h, scores = random_lists(3)
    plain = h.clone().requires_grad_()
    expected = list_loss(case, plain, scores, torch.ones_like(h, dtype=torch.bool))
    expected.sum().backward()
    places = [0, 2, 3, 5]
    wide, wide_scores, mask = torch.full((3, 7), math.nan, dtype=F64), torch.full((3, 7), math.nan, dtype=F64), torch.zeros(3, 7).bool()
    wide[:, places], wide_scores[:, places], mask[:, places] = h, scores, True
    got = list_loss(case, wide.requires_grad_(), wide_scores, mask)
    got.sum().backward()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert wide.grad is not None
    torch.testing.assert_close(wide.grad[:, places], plain.grad, rtol=0, atol=1e-12)
    assert wide.grad[~mask].abs().sum() == 0


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_row_with_nothing_to_compare_is_zero(case: Case) -> None:
    h, scores = random_lists(4)
    mask = torch.tensor([[False] * 4, [False, True, False, False], [True] * 4])
    h.requires_grad_()
    losses = list_loss(case, h, scores, mask)
    losses.sum().backward()
    assert losses[:2].tolist() == [0, 0]
    assert losses[2] > 0.1
    assert h.grad is not None
    assert h.grad[:2].abs().sum() == 0
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_order_of_the_list_does_not_matter(case: Case) -> None:
    h, scores = random_lists(5)
    mask = torch.tensor([[True] * 4, [True, True, False, True], [True, False, False, True]])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(list_loss(case, h[:, order], scores[:, order], mask[:, order]), list_loss(case, h, scores, mask))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_pairs_are_lists_of_two(case: Case) -> None:
    """With scores (1, 0) each is DPO at its beta, times a constant; ADPO is DPO with the label that its target gives."""
    h, _ = random_lists(6, 2)
    scores = torch.tensor([[1.0, 0.0]], dtype=F64).expand(3, 2)
    got = list_loss(case, h, scores, torch.ones_like(h, dtype=torch.bool))
    beta = build(case).beta
    rewards = PairValues(h[:, 0], h[:, 1])
    dpo = preference_loss(PAIR_OBJECTIVES.build("dpo", beta=beta), rewards)
    swapped = preference_loss(PAIR_OBJECTIVES.build("dpo", beta=beta), PairValues(h[:, 1], h[:, 0]))
    if case.name == "adpo":
        # z-scores of two are +-1 / sqrt 2, so that P = sigmoid(sqrt 2 / score_temperature).
        p = sigmoid(math.sqrt(2) / case.parameters.get("score_temperature", 0.5))
        torch.testing.assert_close(got, p * dpo + (1 - p) * swapped, rtol=0, atol=1e-7)
    elif case.name in ("tpo", "rank_dpo") and case.parameters.get("weighted", True):
        torch.testing.assert_close(got, (1 / math.log(2) - 1 / math.log(3)) * dpo)
    else:
        torch.testing.assert_close(got, dpo / (2 if case.name == "irpo" else 1))


@pytest.mark.parametrize(("ranked_by", "value"), [("reward", 0.415234734062), ("score", 0.571511894642)])
def test_ranks_of_rewards_and_of_scores(ranked_by: str, value: float) -> None:
    """Worked by hand where the orders differ: rewards -50 (m - r) of errors m of a policy and r of its reference."""
    rewards = torch.tensor([[-50 * (m - r) for m, r in ((0.26, 0.25), (0.20, 0.22), (0.35, 0.33))]], dtype=F64)
    objective = LIST_OBJECTIVES.build("rank_dpo", beta=1.0, ranked_by=ranked_by)
    got = objective.loss(rewards, torch.tensor([[0.9, 0.6, 0.2]], dtype=F64), torch.ones(1, 3).bool())
    assert got.item() == pytest.approx(value, abs=1e-9)


def test_cross_entropy_is_least_at_the_target() -> None:
    """At h = temperature * log q the softmax is q: the gradient is 0 and the loss q's entropy."""
    case = CASES[0]
    scores = torch.tensor([SCORES], dtype=F64)
    target = torch.tensor([softmax([2.0, 0.0, -2.0])], dtype=F64)
    h = (0.8 * target.log()).requires_grad_()
    loss = list_loss(case, h, scores, torch.ones(1, 3).bool())
    loss.backward()
    assert loss.item() == pytest.approx(-(target * target.log()).sum().item(), abs=1e-7)
    assert h.grad is not None
    assert h.grad.abs().max() < 1e-6


def test_ranks_and_weights_carry_no_gradient() -> None:
    """Twice the weight is twice the gradient: what moves is the softplus alone."""
    h = torch.tensor([[0.8, -1.2]], dtype=F64, requires_grad=True)
    scores = torch.tensor([[1.0, 0.0]], dtype=F64, requires_grad=True)
    list_loss(CASES[5], h, scores, torch.ones(1, 2).bool()).backward()
    weight = 1 / math.log(2) - 1 / math.log(3)
    assert h.grad is not None
    assert h.grad[0, 0].item() == pytest.approx(-weight * 0.1 * sigmoid(-0.2), abs=1e-12)
    assert scores.grad is None


def test_ragged_batch_from_tokens() -> None:
    """Two prompts with three and two responses: each loss is that of its list alone."""
    lengths = [2, 4, 3, 1, 5]
    generator = torch.Generator().manual_seed(7)
    policy, reference = (-torch.rand(sum(lengths), generator=generator, dtype=F64) for _ in range(2))
    tokens = ScoredTokens(torch.repeat_interleave(torch.arange(5), torch.tensor(lengths)), 5)
    scores = torch.tensor([0.2, 0.9, 0.4, 1.0, 0.0])
    batch = ListBatch(tokens, *(Logps(tokens.sums(v), v) for v in (policy, reference)), counts=torch.tensor([3, 2]), scores=scores)
    objective = LIST_OBJECTIVES.build("tpo")
    got = list_objective_loss(objective, batch)
    h = [(a - b).mean().item() for a, b in zip(policy.split(lengths), reference.split(lengths), strict=True)]
    torch.testing.assert_close(compute_list_rewards(objective, batch), 0.5 * torch.tensor(h, dtype=F64))
    assert got.tolist() == pytest.approx([tree(h[:3], scores[:3].tolist(), 0.5), tree(h[3:], scores[3:].tolist(), 0.5)], abs=1e-6)
    padded, mask = pad_lists(scores, torch.tensor([3, 2]))
    assert padded[1].tolist() == [1.0, 0.0, 0.0]
    assert mask.tolist() == [[True] * 3, [True, True, False]]


def test_parameters_outside_their_range() -> None:
    for text, message in (
        ("adpo:temperature=0", "temperature is 0.0"),
        ("adpo:score_temperature=0", "score_temperature is 0.0"),
        ("tpo:beta=0", "beta is 0.0"),
        ("tpo:weighted=maybe", "tpo: weighted is 'maybe'"),
        ("tpa", "unknown list objective 'tpa'; did you mean 'tpo'"),
    ):
        with pytest.raises(ValueError, match=message):
            LIST_OBJECTIVES.parse(text)

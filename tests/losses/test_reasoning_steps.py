"""Steps of responses: where they begin, and their weights by hand and by loops over Python lists."""

import math

import pytest
import torch

from mmalign.losses.list_kernel import ListBatch, list_objective_loss
from mmalign.losses.list_objectives import LIST_OBJECTIVES
from mmalign.losses.reasoning_steps import adaptive_step_weights, number_steps
from mmalign.losses.scores import Logps, ScoredTokens

F64 = torch.float64


def test_steps_end_with_their_response_and_the_last_token_begins_none() -> None:
    """A b. c d. <end> | e. f. <end> | g."""
    tokens = ScoredTokens(torch.tensor([0] * 5 + [1] * 3 + [3]), 4)
    ends = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0, 1]).bool()
    assert number_steps(tokens, ends).tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4]
    assert number_steps(tokens, torch.zeros(9, dtype=torch.bool)).tolist() == [0] * 5 + [1] * 3 + [2]


def test_weights_by_hand() -> None:
    """The best response, 1, has steps along x and y. Response 0: along y (1 + 0), and x + y of two tokens (1 + 1/sqrt 2), then a third
    without counterpart (1).
    """
    tokens = ScoredTokens(torch.tensor([0] * 5 + [1] * 3), 2)
    ends = torch.tensor([1, 0, 1, 0, 0, 1, 0, 0]).bool()
    states = torch.tensor([[0, 2], [4, 0], [0, 4], [9, 9], [-9, 9], [1, 0], [0, 1], [0, 3]], dtype=F64, requires_grad=True)
    assert number_steps(tokens, ends).tolist() == [0, 1, 1, 2, 2, 3, 4, 4]
    weights = adaptive_step_weights(tokens, ends=ends, states=states, best=torch.tensor([1, 1]))(tokens)
    half = (1 + math.sqrt(0.5)) / 2
    torch.testing.assert_close(weights, torch.tensor([1, half, half, 0.5, 0.5, 2, 1, 1], dtype=F64))
    assert not weights.requires_grad


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def test_the_loss_by_loops() -> None:
    """Two prompts of 3 and 2 responses, cut at random; then the gradient of what the loss trains, numerically."""
    generator = torch.Generator().manual_seed(0)
    lengths, counts, scores, beta = [5, 9, 3, 1, 7], [3, 2], [0.2, 0.9, 0.5, 0.0, 1.0], 0.7
    tokens = ScoredTokens(torch.repeat_interleave(torch.arange(5), torch.tensor(lengths)), 5)
    policy, reference = (-torch.rand(25, generator=generator, dtype=F64) for _ in range(2))
    states, ends = torch.randn(25, 4, generator=generator, dtype=F64), torch.rand(25, generator=generator) < 0.4

    at, responses = 0, []
    for length in lengths:
        steps: list[list[int]] = [[]]
        for i in range(at, at + length):
            steps[-1].append(i)
            if ends[i] and i + 2 < at + length:
                steps.append([])
        responses.append(steps)
        at += length
    rows = states.tolist()
    expected = []
    for first, count in zip([0, 3], counts, strict=True):
        those = range(first, first + count)
        best = max(those, key=lambda r: scores[r])
        rewards = {}
        for r in those:
            total = weight_sum = 0.0
            for t, step in enumerate(responses[r]):
                other = responses[best][t] if t < len(responses[best]) else None
                weight = 1 + cosine(mean([rows[i] for i in step]), mean([rows[i] for i in other])) if other else 1.0
                total += weight * sum(float(policy[i] - reference[i]) for i in step) / len(step)
                weight_sum += weight
            rewards[r] = beta * total / weight_sum
        expected.append(sum(math.log1p(math.exp(rewards[j] - rewards[i])) for i in those for j in those if scores[i] > scores[j]))

    objective = LIST_OBJECTIVES.build("tpo", beta=beta, weighted=False, steps="sentences")
    assert objective.needs_tokens

    def loss(values: torch.Tensor) -> torch.Tensor:
        known = [Logps(tokens.sums(x), x) for x in (values, reference)]
        batch = ListBatch(
            tokens, *known, torch.tensor(counts), torch.tensor(scores, dtype=F64), states=states, step_ends={"sentences": ends}
        )
        return list_objective_loss(objective, batch)

    assert loss(policy).tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(loss, (policy.requires_grad_(),))


def test_steps_are_means() -> None:
    with pytest.raises(ValueError, match="steps is lines, which averages, and score is sum; leave score out"):
        LIST_OBJECTIVES.build("tpo", steps="lines", score="sum")

"""List objectives by name: score -> link -> reward as for pairs, then one loss over the responses of a prompt.

Shape legend: B = prompts, N = most responses of a prompt, R = responses of the batch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from mmalign.errors import UserError
from mmalign.losses.coefficients import anchored_target
from mmalign.losses.links import Link, identity
from mmalign.losses.listwise import in_context_ranking_loss, lambda_loss, list_cross_entropy, plackett_luce_loss
from mmalign.losses.reasoning_steps import StepKind, adaptive_step_weights
from mmalign.losses.registry import Registry
from mmalign.losses.scores import SUM, Logps, ScoredTokens, SequenceScore, TokenWeighting, sequence_score

LIST_OBJECTIVES: "Registry[ListObjective]" = Registry("list")


@dataclass(frozen=True, kw_only=True)
class ListObjective:
    """What makes one list objective."""

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(rewards, scores, mask), each (B, N), to (B,) losses."""
    uses_reference: ClassVar[bool] = True
    beta: float
    score: TokenWeighting = SUM
    link: Link = identity
    score_range: tuple[float, float] = (-math.inf, math.inf)
    """What the data's scores may be."""
    steps: StepKind = "whole"
    """Weigh the steps of a response by their likeness to the best response's, instead of ``score``."""

    @property
    def needs_tokens(self) -> bool:
        """Whether log-probabilities must be known token by token."""
        return self.score.needs_tokens or self.steps != "whole"

    def __post_init__(self) -> None:
        """Refuse a beta that would turn the order round.

        Raises:
            ValueError: If beta is not positive.
        """
        if not self.beta > 0:
            raise UserError(f"beta is {self.beta}; expected a positive number, such as 0.1")


@dataclass(frozen=True)
class ListBatch:
    """Responses of several prompts, in the order of the prompts."""

    tokens: ScoredTokens
    policy: Logps
    reference: Logps
    counts: Tensor
    """(B,) responses of each prompt."""
    scores: Tensor
    """(R,) the data's, higher is better."""
    states: Tensor | None = None
    """(K, D) the policy's last hidden states that predict the tokens; only objectives that weigh steps ask."""
    step_ends: Mapping[StepKind, Tensor] = field(default_factory=dict)
    """(K,) booleans for each way of taking responses apart that an objective uses."""


def compute_list_rewards(objective: ListObjective, batch: ListBatch) -> Tensor:
    """Compute beta * link(log-ratio) of each response, (R,)."""
    score = objective.score if objective.steps == "whole" else _step_score(objective.steps, batch)
    log_ratio = score(batch.policy, batch.tokens) - score(batch.reference, batch.tokens)
    return objective.beta * objective.link(log_ratio)


def _step_score(steps: StepKind, batch: ListBatch) -> TokenWeighting:
    assert batch.states is not None
    padded, mask = pad_lists(batch.scores, batch.counts)
    best = padded.masked_fill(~mask, -math.inf).argmax(1) + batch.counts.cumsum(0) - batch.counts
    weights = adaptive_step_weights(
        batch.tokens, ends=batch.step_ends[steps], states=batch.states, best=best.repeat_interleave(batch.counts)
    )
    return TokenWeighting(weights, mean=True)


def list_objective_loss(objective: ListObjective, batch: ListBatch, *, rewards: Tensor | None = None) -> Tensor:
    """Compute the loss of each prompt, (B,), unreduced; ``rewards`` are those of ``compute_list_rewards``, where they are known already."""
    given = compute_list_rewards(objective, batch) if rewards is None else rewards
    padded, mask = pad_lists(given, batch.counts)
    return objective.loss(padded, pad_lists(batch.scores.to(given), batch.counts)[0], mask)


def pad_lists(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Lay (R,) values out as rows.

    Args:
        values: One for each response, in the order of the prompts.
        counts: (B,) responses of each prompt; they add up to R.

    Returns:
        (B, N) values, 0 where there is no response, and the mask.
    """
    mask = torch.arange(int(counts.max()), device=values.device) < counts[:, None].to(values.device)
    return values.new_zeros(mask.shape).masked_scatter(mask, values), mask


@LIST_OBJECTIVES.register("adpo")
def adpo(*, temperature: float = 10.0, score_temperature: float = 0.5, score: SequenceScore = "sum") -> ListObjective:
    """Cross-entropy of softmax(h / temperature) to softmax(z-scores / score_temperature) (ADPO, arXiv:2510.18913).

    The paper's temperature of 0.8 is for its control tasks: with sums over a long response it saturates at once.
    """
    for name, value in (("temperature", temperature), ("score_temperature", score_temperature)):
        if not value > 0:
            raise UserError(f"{name} is {value}; expected a positive number")

    def loss(rewards: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        return list_cross_entropy(rewards, anchored_target(scores, mask, temperature=score_temperature), mask)

    return ListObjective(loss=loss, beta=1 / temperature, score=sequence_score(score))


@LIST_OBJECTIVES.register("plackett_luce")
def plackett_luce(*, beta: float = 0.1, score: SequenceScore = "sum") -> ListObjective:
    """DPO over a ranking (arXiv:2305.18290, appendix A.3)."""
    return ListObjective(loss=plackett_luce_loss, beta=beta, score=sequence_score(score))


@LIST_OBJECTIVES.register("irpo")
def irpo(*, beta: float = 1.0, score: SequenceScore = "mean") -> ListObjective:
    """In-context ranking (IRPO, arXiv:2504.15477): scores are relevance grades from 0."""
    return ListObjective(loss=in_context_ranking_loss, beta=beta, score=sequence_score(score), score_range=(0, 10))


@LIST_OBJECTIVES.register("tpo")
def tpo(*, beta: float = 0.5, weighted: bool = True, score: SequenceScore = "mean", steps: StepKind = "whole") -> ListObjective:
    """Preference trees (TPO, arXiv:2410.12854): every two responses, weighed by what their swap changes in DCG.

    With ``steps``, a response's reward is the mean of its steps' mean log-ratios, weighed by their likeness to the best response's.

    Raises:
        ValueError: If a sum is asked for and steps too, which are means.
    """
    if steps != "whole" and score != "mean":
        raise UserError(f"steps is {steps}, which averages, and score is {score}; leave score out")

    def loss(rewards: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        return lambda_loss(rewards, scores, mask, weighted=weighted)

    return ListObjective(loss=loss, beta=beta, score=sequence_score(score), score_range=(0, 1), steps=steps)

"""What every list objective is made of: score -> link -> reward as for pairs, then one loss over the responses of a prompt.

Shape legend: B = prompts, N = most responses of a prompt, R = responses of the batch, K = scored tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmalign.errors import UserError
from mmalign.losses.links import Link, identity
from mmalign.losses.pair_kernel import Mean
from mmalign.losses.reasoning_steps import StepKind, adaptive_step_weights
from mmalign.losses.scores import SUM, Logps, ScoredTokens, TokenWeighting


@dataclass(frozen=True, kw_only=True)
class ListObjective:
    """What makes one list objective."""

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(rewards, scores, mask), each (B, N), to (B,) losses."""
    beta: float
    score: TokenWeighting = SUM
    link: Link = identity
    score_range: tuple[float, float] = (-math.inf, math.inf)
    """What the data's scores may be."""
    steps: StepKind = "whole"
    """Weigh the steps of a response by their likeness to the best response's, instead of ``score``."""
    compares: bool = True
    """Whether a reward is the policy's score less the reference's, or the policy's alone."""
    values: "Callable[[ListBatch], Tensor] | None" = None
    """(R,) what the loss takes of each response where that is not its reward."""
    constraint: "Callable[[ListBatch], Tensor] | None" = None
    """A scalar of the whole batch, added to each prompt's loss."""
    sampled: bool = False
    """Whether lists are what a policy sampled: texts may be equal, and so may all scores; such prompts give 0 and count."""
    binary: bool = False
    """Whether scores are 1 (right) or 0 (wrong)."""

    @property
    def uses_reference(self) -> bool:
        """Whether anything is asked of the reference, which is the policy that sampled where ``sampled``."""
        return self.compares or self.values is not None or self.constraint is not None

    @property
    def needs_tokens(self) -> bool:
        """Whether log-probabilities must be known token by token."""
        return self.score.needs_tokens or self.steps != "whole" or self.values is not None or self.constraint is not None

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
    reference: Logps | None
    """None where no objective of the run asks for it."""
    counts: Tensor
    """(B,) responses of each prompt."""
    scores: Tensor
    """(R,) the data's, higher is better."""
    states: Tensor | None = None
    """(K, D) the policy's last hidden states that predict the tokens; only objectives that weigh steps ask."""
    step_ends: Mapping[StepKind, Tensor] = field(default_factory=dict)
    """(K,) booleans for each way of taking responses apart that an objective uses."""
    mean: Mean = torch.mean

    @property
    def old(self) -> Logps:
        """The reference, where it is the policy that sampled."""
        assert self.reference is not None, "an objective that asks for a reference has one"
        return self.reference


def compute_list_rewards(objective: ListObjective, batch: ListBatch) -> Tensor:
    """Compute beta * link(log-ratio) of each response, (R,), or of the policy's own score."""
    score = objective.score if objective.steps == "whole" else _step_score(objective.steps, batch)
    own = score(batch.policy, batch.tokens)
    return objective.beta * objective.link(own - score(batch.old, batch.tokens) if objective.compares else own)


def _step_score(steps: StepKind, batch: ListBatch) -> TokenWeighting:
    assert batch.states is not None
    padded, mask = pad_lists(batch.scores, batch.counts)
    best = padded.masked_fill(~mask, -math.inf).argmax(1) + batch.counts.cumsum(0) - batch.counts
    weights = adaptive_step_weights(
        batch.tokens, ends=batch.step_ends[steps], states=batch.states, best=best.repeat_interleave(batch.counts)
    )
    return TokenWeighting(weights, mean=True)


def list_objective_loss(objective: ListObjective, batch: ListBatch, *, rewards: Tensor | None = None) -> Tensor:
    """Compute the loss of each prompt, (B,), unreduced and without the constraint.

    ``rewards`` are those of ``compute_list_rewards``, where they are known already.
    """
    if objective.values is not None:
        given = objective.values(batch)
    else:
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

"""Token log-probabilities to one score a response: the first stage of every preference objective.

Every way of scoring is a weighting of tokens, with or without division by the weights' sum. Policy and reference are weighted
alike by construction, so that their difference is zero where they agree.

Shape legend: K = scored tokens of the batch, R = responses of the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import UserError
from mmalign.losses.doubles import widest_dtype


@dataclass(frozen=True)
class ScoredTokens:
    """Which response each scored token belongs to. Image, prompt and padding tokens have no place here."""

    response: Tensor
    """(K,) number of the token's response, ascending."""
    num_responses: int
    token_ids: Tensor | None = None
    """(K,) what the tokens are; only weights that compare a pair's words ask."""

    def sums(self, values: Tensor) -> Tensor:
        """(R,) sums of (K,) values over each response."""
        return values.new_zeros(self.num_responses).index_add(0, self.response, values)

    def regroup(self, number: Tensor, *, num_responses: int) -> "tuple[ScoredTokens, Tensor]":
        """Take spans of tokens for the responses.

        Args:
            number: (K,) of each token's span, ascending; -1 where it counts nowhere.
            num_responses: Spans of the batch.

        Returns:
            The tokens that count, and (K,) which they are.
        """
        kept = number >= 0
        return ScoredTokens(number[kept], num_responses, None if self.token_ids is None else self.token_ids[kept]), kept

    def lengths(self) -> Tensor:
        """(R,) tokens of each response."""
        return torch.bincount(self.response, minlength=self.num_responses)

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut (K, ...) values into those of each response."""
        return list(values.split(self.lengths().tolist()))

    def starts(self) -> Tensor:
        """(R,) index of each response's first token."""
        lengths = self.lengths()
        return lengths.cumsum(0) - lengths

    def positions(self) -> Tensor:
        """(K,) position of each token in its response, from 0."""
        return torch.arange(len(self.response), device=self.response.device) - self.starts()[self.response]


@dataclass(frozen=True)
class Logps:
    """Log-probabilities of responses under one model."""

    sums: Tensor
    """(R,) log p(response | images, prompt)."""
    token_logps: Tensor | None = None
    """(K,) float32 or more; None where only the sums are known."""
    token_logits: Tensor | None = None
    """(K,) the tokens' own logits; None where nobody asked."""


TokenWeights = Callable[[ScoredTokens], Tensor]


@dataclass(frozen=True)
class TokenWeighting:
    """How a response's token log-probabilities become its score."""

    token_weights: TokenWeights | None = None
    """(K,) weights of the tokens; None counts all alike, and then the sums of log-probabilities are enough."""
    mean: bool = False
    """Divide by the sum of the weights. A response without tokens scores 0."""

    @property
    def needs_tokens(self) -> bool:
        """Whether log-probabilities must be known token by token."""
        return self.token_weights is not None

    def __call__(self, logps: Logps, tokens: ScoredTokens) -> Tensor:
        """Score each response.

        Args:
            logps: Under the policy or the reference.
            tokens: What the log-probabilities belong to.

        Returns:
            (R,) scores in nats, float32 or float64.

        Raises:
            ValueError: If tokens are weighted and only sums are known.
        """
        if self.token_weights is None:
            total, weight = at_least_float32(logps.sums), tokens.lengths()
        else:
            if logps.token_logps is None:
                raise UserError("this score weights tokens, and only sums of log-probabilities are given: give log-probabilities by token")
            values = at_least_float32(logps.token_logps)
            weights = self.token_weights(tokens).to(values.dtype)
            total, weight = tokens.sums(weights * values), tokens.sums(weights)
        if not self.mean:
            return total
        return total / torch.where(weight == 0, torch.ones_like(weight), weight)


SUM = TokenWeighting()
MEAN = TokenWeighting(mean=True)
SequenceScore = Literal["sum", "mean"]


def sequence_score(name: SequenceScore) -> TokenWeighting:
    """Return the score of an objective that leaves the choice between sum and mean to its user."""
    return MEAN if name == "mean" else SUM


def length_desensitized_weights(tokens: ScoredTokens, *, tail_weight: float) -> Tensor:
    """Weight what a response is longer than its partner (LD-DPO, arXiv:2409.06411).

    Args:
        tokens: Pairs: responses 2 i and 2 i + 1 are partners.
        tail_weight: Weight of tokens past the shorter response's length (the paper's alpha): 1 is DPO, 0 cuts the tail off.

    Returns:
        (K,) 1 or ``tail_weight``.
    """
    shared = tokens.lengths().view(-1, 2).amin(1).repeat_interleave(2)
    in_tail = tokens.positions() >= shared[tokens.response]
    return torch.ones_like(in_tail, dtype=widest_dtype(in_tail.device)).masked_fill(in_tail, tail_weight)


def suffix_weights(tokens: ScoredTokens) -> Tensor:
    """Count tokens from the first one in which a pair differs (step-level DPO, arXiv:2405.00451): the shared steps drop out.

    Args:
        tokens: Pairs with their token ids: responses 2 i and 2 i + 1 are partners.

    Returns:
        (K,) 0 on the shared prefix, 1 behind it.

    Raises:
        ValueError: If there are no token ids.
    """
    if tokens.token_ids is None:
        raise UserError("suffix_weights compares token ids, and none are given")
    partner = tokens.response ^ 1
    position, starts = tokens.positions(), tokens.starts()
    has_partner = position < tokens.lengths()[partner]
    partner_ids = tokens.token_ids[torch.where(has_partner, starts[partner] + position, 0)]
    differs = (~(has_partner & (tokens.token_ids == partner_ids))).long()
    seen = F.pad(differs.cumsum(0), (1, 0))
    return (seen[1:] > seen[starts][tokens.response]).float()


def changed_weights(tokens: ScoredTokens, *, weight: float, shortest: int = 3) -> Tensor:
    """Count the words that a correction changed more than the others (RLHF-V's DDPO, arXiv:2312.00849).

    Args:
        tokens: Pairs with their token ids: responses 2 i and 2 i + 1 are partners.
        weight: Of tokens outside what both responses share, which count 1.
        shortest: Tokens in a row that both must have to share them.

    Returns:
        (K,) 1 or ``weight``.

    Raises:
        ValueError: If there are no token ids.
    """
    if tokens.token_ids is None:
        raise UserError("changed_weights compares token ids, and none are given")
    responses = [part.tolist() for part in tokens.split(tokens.token_ids)]
    found = [[weight] * len(ids) for ids in responses]
    for number in range(0, len(responses), 2):
        matcher = SequenceMatcher(None, responses[number], responses[number + 1], autojunk=False)
        for at, other, size in matcher.get_matching_blocks():
            if size >= shortest:
                found[number][at : at + size] = found[number + 1][other : other + size] = [1.0] * size
    device = tokens.response.device
    return torch.tensor([value for part in found for value in part], dtype=widest_dtype(device), device=device)


def step_weights(step: Tensor, weight: Tensor) -> TokenWeights:
    """Weight reasoning steps, each by the mean of its tokens, so that long steps don't count more (TPO, arXiv:2410.12854).

    Args:
        step: (K,) number of the step that each token belongs to, counted over the whole batch, from 0.
        weight: (S,) weight of each step; see ``coefficients.step_similarity``.
    """
    lengths = torch.bincount(step, minlength=len(weight)).to(weight.dtype)
    return lambda tokens: (weight / lengths)[step]


def at_least_float32(values: Tensor) -> Tensor:
    """Lift half precision: log-ratios are small differences of large numbers."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

"""The one kernel of every pair objective: score -> link -> margin -> outer loss.

    reward  = beta * link(score under the policy - score under the reference)
    margin  = chosen reward - rejected reward - offset
    loss    = weight * [ (1 - label_flip) * outer(margin) + label_flip * outer(-margin) ] + sft_weight * NLL(chosen)

A pointwise objective has no margin between the two: it puts each reward through the outer loss on its own.

Objectives that look at other images add terms over cells, an image and a response each (see ``image_terms.py``).

Shape legend: B = pairs, R = 2 B responses (chosen, rejected, chosen, ...), K = scored tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import UserError
from mmalign.losses.image_terms import Cell, CellLogps, Penalty, Term, cell_rewards, cells_of, terms_loss
from mmalign.losses.links import Link, identity
from mmalign.losses.scores import SUM, Logps, ScoredTokens, TokenWeighting, at_least_float32

Columns = Mapping[str, Tensor]
ColumnMap = Callable[[Columns], Tensor]
"""Columns of the data, (B,) each, to a parameter of each pair."""
Outer = Callable[[Tensor, float | Tensor], Tensor]
"""(margin, beta) to loss, elementwise; only ``squared`` needs the beta."""


class PairValues(NamedTuple):
    """A number for each response of a pair: a score, a log-ratio, a reward."""

    chosen: Tensor
    """(B,)"""
    rejected: Tensor
    """(B,)"""


Adjust = Callable[[PairValues, "PairBatch"], PairValues]
"""(rewards without beta, batch) to the rewards that the loss takes: what other images say of a pair, in its own margin."""
Mean = Callable[[Tensor], Tensor]
"""(B,) to a scalar: the mean over the micro-batch, or over those of all processes."""
Form = Callable[[PairValues, Callable[[Tensor], Tensor], float | Tensor, Mean], Tensor]
"""(rewards, outer loss, offset, mean over the batch) to (B,) losses."""


def logistic(margin: Tensor, beta: float | Tensor) -> Tensor:
    """-log sigmoid(margin)."""
    return -F.logsigmoid(margin)


def hinge(margin: Tensor, beta: float | Tensor) -> Tensor:
    """max(0, 1 - margin)."""
    return torch.relu(1 - margin)


def squared(margin: Tensor, beta: float | Tensor) -> Tensor:
    """(margin / beta)^2: with offset 1/2, IPO's (log-ratio - 1 / (2 beta))^2."""
    return (margin / beta).square()


def bounded(margin: Tensor, beta: float | Tensor) -> Tensor:
    """1 - sigmoid(margin): KTO's, which saturates on both sides."""
    return torch.sigmoid(-margin)


def pairwise(rewards: PairValues, outer: Callable[[Tensor], Tensor], offset: float | Tensor, mean: Mean) -> Tensor:
    """outer(chosen - rejected - offset)."""
    return outer(rewards.chosen - rewards.rejected - offset)


def pointwise(*, rejected_weight: float = 1.0) -> Form:
    """outer(chosen - offset) + rejected_weight * outer(offset - rejected)."""

    def form(rewards: PairValues, outer: Callable[[Tensor], Tensor], offset: float | Tensor, mean: Mean) -> Tensor:
        return outer(rewards.chosen - offset) + rejected_weight * outer(offset - rewards.rejected)

    return form


def absent(rewards: PairValues, outer: Callable[[Tensor], Tensor], offset: float | Tensor, mean: Mean) -> Tensor:
    """No loss between chosen and rejected, for objectives whose terms say all."""
    return torch.zeros_like(rewards.chosen)


def against_batch_mean(*, detach: bool) -> Form:
    """Each response against the batch's mean reward of the other side, at least 0: KTO's baseline over pairs.

    Half of outer(chosen - K(rejected)) + outer(K(chosen) - rejected). A pair's loss depends on its neighbours in the micro-batch,
    on all processes.

    Args:
        detach: Send no gradient through the baseline, as KTO's paper does; LLaVA-MoD's code lets it through.
    """

    def form(rewards: PairValues, outer: Callable[[Tensor], Tensor], offset: float | Tensor, mean: Mean) -> Tensor:
        chosen, rejected = (mean(value).clamp(min=0) for value in rewards)
        if detach:
            chosen, rejected = chosen.detach(), rejected.detach()
        return (outer(rewards.chosen - rejected - offset) + outer(chosen - rewards.rejected - offset)) / 2

    return form


@dataclass(frozen=True, kw_only=True)
class PairObjective:
    """What makes one objective of the family: its choice at each stage. The defaults are DPO."""

    score: TokenWeighting = SUM
    link: Link = identity
    uses_reference: bool = True
    beta: float = 0.1
    """Factor of the chosen response's reward, and of the rejected one's."""
    rejected_scale: float | ColumnMap = 1.0
    """Factor of the rejected response's reward beside beta."""
    beta_scale: float | ColumnMap = 1.0
    """Factor of both betas, pair by pair."""
    offset: float | ColumnMap = 0.0
    label_flip: float | ColumnMap = 0.0
    """Share of the loss that goes to the swapped pair. Negative values correct for labels that are known to be noisy."""
    outer: Outer = logistic
    form: Form = pairwise
    weight: float | ColumnMap = 1.0
    """Factor of the preference loss, without the SFT term."""
    sft_weight: float = 0.0
    """Factor of the chosen response's mean negative log-likelihood."""
    columns: tuple[str, ...] = ()
    """Columns of the data that the maps read."""
    least: float = -math.inf
    """The smallest value that a column may hold."""
    terms: tuple[Term, ...] = ()
    """Added to the loss; beta is a factor of theirs."""
    penalty: Penalty | None = None
    """Added to the loss as well: any function of the terms' cells."""
    adjust: Adjust | None = None
    """What cells change of the rewards before the margin."""
    reads: tuple[Cell, ...] = ()
    """Cells that ``adjust`` reads."""
    compares_cells: bool = False
    """Whether ``adjust`` reads the reference of its cells too."""
    needs_logits: bool = False
    """Whether ``adjust`` reads the logits of the policy's tokens, and so the reference's."""
    needs_divergence: bool = False
    """Whether ``adjust`` reads the policy's divergence from the reference, over all words at each token."""

    @property
    def needs_tokens(self) -> bool:
        """Whether log-probabilities must be known token by token."""
        return self.score.needs_tokens or self.needs_logits

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that are read."""
        return tuple(dict.fromkeys((*cells_of(self.terms), *self.reads)))

    def __post_init__(self) -> None:
        """Refuse what would turn the preference round, and try the maps on no pairs.

        Raises:
            ValueError: If a beta is not positive, or a map refuses its parameters.
            KeyError: If a map reads a column that ``columns`` does not name.
        """
        if not self.beta > 0:
            raise UserError(f"beta is {self.beta}; expected a positive number, such as 0.1")
        empty = torch.zeros(0)
        for name, parameter in self.maps().items():
            _per_pair(parameter, columns=dict.fromkeys(self.columns, empty), like=empty, name=name)

    def maps(self) -> dict[str, float | ColumnMap]:
        """What may differ from pair to pair."""
        named = ("beta_scale", "rejected_scale", "offset", "label_flip", "weight")
        return {name: getattr(self, name) for name in named}


@dataclass(frozen=True)
class PairBatch:
    """All that an objective may look at."""

    tokens: ScoredTokens
    policy: Logps
    reference: Logps | None = None
    """None where no objective of the run has a reference."""
    columns: Columns = field(default_factory=dict)
    beta_scale: float | Tensor = 1.0
    """(B,) from difficulty: a factor of every objective's beta."""
    weight: float | Tensor = 1.0
    """(B,) from difficulty: a factor of every objective's preference loss, not of its SFT term."""
    label_flip: float | Tensor = 0.0
    """(B,) of labels in doubt: the share of every objective's preference loss that goes to the swapped pair."""
    mean: Mean = torch.mean
    """For objectives that compare a response with its batch."""
    cells: Mapping[Cell, CellLogps] = field(default_factory=dict)
    """What the objectives read of other images and responses, B responses each."""
    divergence: PairValues | None = None
    """KL(reference, policy) over all words, summed over each response's tokens; None where nobody asked."""


def compute_rewards(objective: PairObjective, batch: PairBatch) -> PairValues:
    """Compute the implicit rewards without beta: the link of the log-ratio, or of the policy's score.

    Returns:
        (B,) each.

    Raises:
        ValueError: If the objective has a reference and the batch has none.
    """
    score = objective.score(batch.policy, batch.tokens)
    if objective.uses_reference:
        if batch.reference is None:
            raise UserError("this objective compares with a reference, and the batch has no log-probabilities of one")
        score = score - objective.score(batch.reference, batch.tokens)
    linked = objective.link(score)
    return PairValues(linked[0::2], linked[1::2])


def preference_loss(
    objective: PairObjective,
    rewards: PairValues,
    *,
    columns: Columns | None = None,
    beta_scale: float | Tensor = 1.0,
    label_flip: float | Tensor = 0.0,
    mean: Mean = torch.mean,
) -> Tensor:
    """Compute the preference loss of each pair, without the SFT term.

    Args:
        objective: Its beta, margin and outer loss.
        rewards: From ``compute_rewards``, (B,) each.
        columns: What the objective's maps read, (B,) each.
        beta_scale: Factor of beta; a (B,) tensor sets it pair by pair, which is all that DA-DPO changes.
        label_flip: Share of the pair's loss that is the swapped pair's by the same objective, beside any flips of its own.
        mean: Over the batch, for objectives that compare a response with it.

    Returns:
        (B,) losses, unreduced.

    Raises:
        ValueError: If a parameter has another shape than the pairs.
    """
    rewards = PairValues(*map(at_least_float32, rewards))
    read = partial(_per_pair, columns=columns or {}, like=rewards.chosen)
    own = {name: read(value, name=name) for name, value in objective.maps().items()}
    scale = own["beta_scale"] * read(beta_scale, name="beta_scale")
    beta = objective.beta * scale
    beta_rejected = beta * own["rejected_scale"]
    outer = _with_flips(objective, beta, own["label_flip"])

    def compute(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objective.form(PairValues(beta * chosen, beta_rejected * rejected), outer, own["offset"], mean)

    loss = compute(*rewards)
    doubt = read(label_flip, name="label_flip")
    if isinstance(doubt, Tensor) or doubt != 0:
        # The rewards change places, not the margin its sign: IPO's is the same on both sides of its offset.
        loss = (1 - doubt) * loss + doubt * compute(rewards.rejected, rewards.chosen)
    return own["weight"] * loss


def chosen_nll(batch: PairBatch) -> Tensor:
    """Compute the mean negative log-likelihood of each chosen response's tokens, (B,)."""
    lengths = batch.tokens.lengths()[0::2].clamp(min=1)
    return -at_least_float32(batch.policy.sums)[0::2] / lengths


def objective_loss(objective: PairObjective, batch: PairBatch, *, rewards: PairValues | None = None) -> Tensor:
    """Compute an objective with its SFT term: (B,) losses, unreduced.

    Args:
        objective: What is computed.
        batch: The pairs.
        rewards: From ``compute_rewards``, where they are known already or were moved.
    """
    given = compute_rewards(objective, batch) if rewards is None else rewards
    if objective.adjust is not None:
        given = objective.adjust(given, batch)
    losses = preference_loss(
        objective, given, columns=batch.columns, beta_scale=batch.beta_scale, label_flip=batch.label_flip, mean=batch.mean
    )
    if objective.terms:
        # Where the label is in doubt, so is the answer that the terms want of the image.
        losses = losses + (1 - batch.label_flip) * _terms(objective, batch)
    losses = batch.weight * losses
    return losses + objective.sft_weight * chosen_nll(batch) if objective.sft_weight else losses


def _terms(objective: PairObjective, batch: PairBatch) -> Tensor:
    rewards = cell_rewards(objective.cells, batch.cells, uses_reference=objective.uses_reference)
    loss = terms_loss(objective.terms, rewards, beta=objective.beta * batch.beta_scale)
    return loss if objective.penalty is None else loss + objective.penalty(rewards)


def _with_flips(objective: PairObjective, beta: float | Tensor, flip: float | Tensor) -> Callable[[Tensor], Tensor]:
    """Mix the outer loss with that of the swapped pair. For the logistic this is -log sigmoid(margin) + flip * margin."""

    def outer(margin: Tensor) -> Tensor:
        loss = objective.outer(margin, beta)
        # Where no label is in doubt the other side is not computed: plain DPO is one logistic, as TRL's is.
        return loss if objective.label_flip == 0.0 else (1 - flip) * loss + flip * objective.outer(-margin, beta)

    return outer


def _per_pair(value: float | Tensor | ColumnMap, *, columns: Columns, like: Tensor, name: str) -> float | Tensor:
    """Turn a number, a (B,) tensor or a map into a number or a (B,) tensor of the rewards' type."""
    if callable(value):
        value = value(columns)
    if not isinstance(value, Tensor):
        return value
    if value.shape != like.shape:
        raise UserError(f"{name} has shape {tuple(value.shape)}; expected one value per pair, {tuple(like.shape)}")
    return value.to(like)

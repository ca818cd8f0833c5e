"""Preferences between images: terms over cells, each the log-ratio of one response given one image.

A pair can be won without a look at the image. A term asks for more: that the chosen answer is likelier given its own image than given a
weakened one, another one or none; or that it does not get less likely than it was.

    h(cell)  = log p(response | image) under the policy - the same under the reference, summed over the response
    loss     = sum over terms of weight * -log sigmoid(beta * (h(over) - h(under)) - offset); h(under) = 0 where a term names none

Shape legend: B = pairs, K = scored tokens of a cell's responses.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import UserError
from mmalign.losses.scores import Logps, ScoredTokens, at_least_float32

ImageKind = Literal["own", "weakened", "other", "none"]
"""The row's image, the same with most of it gone, the row's other image, or no image at all."""
ResponseKind = Literal["chosen", "rejected", "other"]
"""The row's answers, and the right one for its other image."""


class Cell(NamedTuple):
    """A response, given an image."""

    image: ImageKind
    response: ResponseKind


CHOSEN, REJECTED = Cell("own", "chosen"), Cell("own", "rejected")


class Term(NamedTuple):
    """A preference of one cell over another, or over what the reference says of it."""

    over: Cell
    under: Cell | None = None
    weight: float = 1.0
    beta_scale: float = 1.0
    """Factor of the objective's beta."""
    offset: float = 0.0
    """Behind beta: how far the one is to stand above the other."""


@dataclass(frozen=True)
class CellLogps:
    """What policy and reference say of a cell, a response per pair."""

    tokens: ScoredTokens
    policy: Logps
    reference: Logps | None = None

    def log_ratio(self, *, uses_reference: bool = True) -> Tensor:
        """(B,) sums of log-ratios, or of the policy's log-probabilities.

        Raises:
            ValueError: If there is no reference and it is asked for.
        """
        score = at_least_float32(self.policy.sums)
        if not uses_reference:
            return score
        if self.reference is None:
            raise UserError("this objective compares cells with a reference, and the batch has no log-probabilities of one")
        return score - at_least_float32(self.reference.sums)


CellRewards = Mapping[Cell, Tensor]
"""(B,) log-ratios by cell."""
Penalty = Callable[[CellRewards], Tensor]
"""Log-ratios to (B,) losses."""


def cells_of(terms: Iterable[Term]) -> tuple[Cell, ...]:
    """The cells that terms read, in their order."""
    return tuple(dict.fromkeys(cell for term in terms for cell in (term.over, term.under) if cell is not None))


def cell_rewards(cells: Iterable[Cell], found: Mapping[Cell, CellLogps], *, uses_reference: bool = True) -> dict[Cell, Tensor]:
    """Compute each cell's log-ratio, (B,).

    Raises:
        ValueError: If a cell is missing, or its reference.
    """
    cells = list(cells)
    missing = [cell for cell in cells if cell not in found]
    if missing:
        raise UserError(f"this objective reads {missing[0].response} given the {missing[0].image} image, and the batch has no such cell")
    return {cell: found[cell].log_ratio(uses_reference=uses_reference) for cell in cells}


def terms_loss(terms: Iterable[Term], rewards: CellRewards, *, beta: float | Tensor) -> Tensor:
    """Sum the terms' losses: (B,), unreduced.

    Args:
        terms: What is preferred to what.
        rewards: (B,) log-ratios of all cells that they read.
        beta: A number, or (B,).
    """
    losses = []
    for term in terms:
        difference = rewards[term.over] - (rewards[term.under] if term.under is not None else 0.0)
        losses.append(-term.weight * F.logsigmoid(term.beta_scale * beta * difference - term.offset))
    return torch.stack(losses).sum(0)

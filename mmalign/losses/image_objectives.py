"""Objectives that compare images: terms over cells, or what cells change of a pair's own margin.

A new one is a function here and a name in ``IMAGE_OBJECTIVES``. ``docs/objectives.md`` holds each one's formula, what was read in the
authors' code, what is reconstructed, and which faults of released code are not repeated.

Shape legend: B = pairs, K = scored tokens.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mmalign.errors import UserError
from mmalign.losses.image_terms import CHOSEN, Cell, CellLogps, CellRewards, Term
from mmalign.losses.pair_kernel import PairBatch, PairObjective, PairValues, absent
from mmalign.losses.registry import positive
from mmalign.losses.scores import Logps, ScoredTokens, TokenWeighting, at_least_float32, changed_weights

WEAKENED_CHOSEN, WEAKENED_REJECTED = Cell("weakened", "chosen"), Cell("weakened", "rejected")
OWN_OTHER, OTHER_OTHER, OTHER_CHOSEN = Cell("own", "other"), Cell("other", "other"), Cell("other", "chosen")


def mdpo(*, beta: float = 0.1, image_weight: float = 1.0, anchor_weight: float = 1.0, anchor: float = 0.0) -> PairObjective:
    """DPO, the own image over a weakened one, and an anchor (mDPO, arXiv:2406.11839): the chosen answer may not get less likely.

    The weakened image is drawn once per row; the released code draws another for policy and reference at each step.
    """
    image = Term(CHOSEN, WEAKENED_CHOSEN, weight=positive(image_weight, "image_weight"))
    return PairObjective(beta=beta, terms=(image, *_anchors(CHOSEN, weight=anchor_weight, offset=anchor)))


def anchor(*, beta: float = 0.1, anchor: float = 0.0) -> PairObjective:
    """-log sigmoid(beta h_w - anchor): the chosen answer above the reference, no other image (mDPO's third term, arXiv:2406.11839)."""
    return PairObjective(beta=beta, form=absent, terms=_anchors(CHOSEN, weight=1.0, offset=anchor))


def svco(*, beta: float = 0.1) -> PairObjective:
    """Each of two similar images over none, and none over the wrong one, for the answer of each (S-VCO, arXiv:2502.13928)."""
    terms = [
        term
        for response, right, wrong in (("chosen", "own", "other"), ("other", "other", "own"))
        for term in (
            Term(Cell(right, response), Cell("none", response)),  # type: ignore[arg-type]
            Term(Cell("none", response), Cell(wrong, response)),  # type: ignore[arg-type]
        )
    ]
    return PairObjective(beta=beta, form=absent, terms=tuple(terms))


def symmpo(*, beta: float = 0.1, image_weight: float = 0.5, anchor_weight: float = 1.0, balance_weight: float = 1e-4) -> PairObjective:
    """DPO, both images' answers compared given each image, and anchors (SymMPO, arXiv:2506.11712): own answer over the other's, and back.

    ``balance_weight`` is of the squared difference between the two comparisons.
    """
    weight = positive(image_weight, "image_weight")
    terms = (
        Term(CHOSEN, OWN_OTHER, weight=weight),
        Term(OTHER_OTHER, OTHER_CHOSEN, weight=weight),
        *_anchors(CHOSEN, OTHER_OTHER, weight=anchor_weight),
    )

    def balance(rewards: CellRewards) -> Tensor:
        own, other = rewards[CHOSEN] - rewards[OWN_OTHER], rewards[OTHER_OTHER] - rewards[OTHER_CHOSEN]
        return balance_weight * (own - other).square()

    return PairObjective(beta=beta, terms=terms, penalty=balance)


def opa(*, beta: float = 0.1, image_weight: float = 0.2, anchor_weight: float = 1.0) -> PairObjective:
    """DPO, the own image over a masked one, and an anchor, in the weights of OPA-DPO's paper (arXiv:2501.09695); rows hold its two pairs.

    Sums over whole responses; the released code averages over padding and turns the sign of two anchors.
    """
    return mdpo(beta=beta, image_weight=image_weight, anchor_weight=anchor_weight)


def chip(*, beta: float = 0.1, kl_weight: float = 0.1, changed_weight: float = 4.0) -> PairObjective:
    """One margin of words, images and divergences (CHiP, arXiv:2501.16629), in it TDPO's term over the words at each place.

    Delta' + [h'(w | own) - h'(w | weakened)] - kl_weight [KL_l - stopgrad(KL_w)], h' with changed words weighted, KL(reference, policy)
    summed over the response.
    """
    weights = partial(changed_weights, weight=positive(changed_weight, "changed_weight"))

    def adjust(rewards: PairValues, batch: PairBatch) -> PairValues:
        cell = batch.cells[WEAKENED_CHOSEN]
        weight = weights(batch.tokens)[batch.tokens.response % 2 == 0]
        weakened = _weighted_ratio(cell, weight)
        assert batch.divergence is not None, "the method hands it over where an objective needs it"
        kl = PairValues(*map(at_least_float32, batch.divergence))
        image = rewards.chosen - weakened
        return PairValues(rewards.chosen + image - kl_weight * (kl.rejected - kl.chosen.detach()), rewards.rejected)

    return PairObjective(
        beta=beta, score=TokenWeighting(weights), adjust=adjust, reads=(WEAKENED_CHOSEN,), needs_divergence=True, compares_cells=True
    )


def vdpo(*, beta: float = 0.1, guidance: float = 1.5) -> PairObjective:
    """DPO on a policy that is guided by its image: g s(y | own) - (g - 1) stopgrad s(y | weakened) (V-DPO, arXiv:2411.02712).

    Raises:
        ValueError: If the guidance is 1 or less: at 1 it is DPO, and the released script's 0 leaves no gradient.
    """
    if not guidance > 1:
        raise UserError(f"guidance is {guidance}; expected more than 1: at 1 vdpo is dpo")

    def adjust(rewards: PairValues, batch: PairBatch) -> PairValues:
        own = at_least_float32(batch.policy.sums).view(-1, 2).unbind(1)
        seen = [at_least_float32(batch.cells[cell].policy.sums) for cell in (WEAKENED_CHOSEN, WEAKENED_REJECTED)]
        guided = [(guidance - 1) * (with_image - without.detach()) for with_image, without in zip(own, seen, strict=True)]
        return PairValues(rewards.chosen + guided[0], rewards.rejected + guided[1])

    return PairObjective(beta=beta, adjust=adjust, reads=(WEAKENED_CHOSEN, WEAKENED_REJECTED))


def tpo_token(*, beta: float = 0.1) -> PairObjective:
    """DPO with a bonus for each token that the image makes likelier (TPO, arXiv:2412.14487; ``tpo`` is another paper's).

    log p + log c of each token, c = sigmoid(q) + 1/2 in the chosen answer and 3/2 - sigmoid(q) in the rejected one, q the token's logit
    given the own image less that given the weakened one; policy and reference each have their own c, as in the authors' code.
    """

    def adjust(rewards: PairValues, batch: PairBatch) -> PairValues:
        sides = []
        for side, (reward, cell) in enumerate(zip(rewards, (WEAKENED_CHOSEN, WEAKENED_REJECTED), strict=True)):
            found, inside = batch.cells[cell], batch.tokens.response % 2 == side
            policy = _bonus(batch.policy, found.policy, found.tokens, inside, rejected=side == 1)
            reference = _bonus(batch.reference, found.reference, found.tokens, inside, rejected=side == 1)
            sides.append(reward + policy - reference)
        return PairValues(*sides)

    return PairObjective(beta=beta, adjust=adjust, reads=(WEAKENED_CHOSEN, WEAKENED_REJECTED), needs_logits=True, compares_cells=True)


IMAGE_OBJECTIVES: dict[str, Callable[..., PairObjective]] = {
    build.__name__: build for build in (mdpo, anchor, svco, symmpo, opa, chip, vdpo, tpo_token)
}
"""What ``pair_objectives.py`` registers."""


def _anchors(*cells: Cell, weight: float, offset: float = 0.0) -> tuple[Term, ...]:
    return tuple(Term(cell, weight=weight, offset=offset) for cell in cells) if weight else ()


def _weighted_ratio(cell: CellLogps, weights: Tensor) -> Tensor:
    """(B,) log-ratios of a cell whose tokens count differently."""
    assert cell.reference is not None, "a cell that is compared has a reference"
    values = [logps.token_logps for logps in (cell.policy, cell.reference)]
    if values[0] is None or values[1] is None:
        raise UserError("this objective weights tokens, and only sums of log-probabilities are given: give log-probabilities by token")
    return cell.tokens.sums(weights.to(at_least_float32(values[0]).dtype) * (at_least_float32(values[0]) - at_least_float32(values[1])))


def _bonus(own: Logps | None, weakened: Logps | None, tokens: ScoredTokens, inside: Tensor, *, rejected: bool) -> Tensor:
    """(B,) sums of log c over the tokens of one side; ``inside`` are its tokens among the pair's."""
    logits = [None if logps is None else logps.token_logits for logps in (own, weakened)]
    if logits[0] is None or logits[1] is None:
        raise UserError("this objective compares the tokens' logits given two images, and none are given; a cached reference has none")
    q = at_least_float32(logits[0][inside]) - at_least_float32(logits[1])
    # 3/2 - sigmoid(q) = sigmoid(-q) + 1/2
    return tokens.sums(torch.log(torch.sigmoid(-q if rejected else q) + 0.5))

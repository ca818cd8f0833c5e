"""Objectives of text on an image's log-ratio, with the betas that their papers publish where those are known.

Shape legend: B = rows, R = images in the batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmalign.errors import UserError
from mmalign.losses.list_kernel import ListObjective, pad_lists
from mmalign.losses.list_objectives import rank_dpo
from mmalign.losses.listwise import RankedBy
from mmalign.losses.pair_kernel import Mean, PairObjective, PairValues, preference_loss
from mmalign.losses.pair_objectives import PAIR_OBJECTIVES
from mmalign.losses.registry import Named, Registry, positive

# Of the log-ratio. Diffusion-DPO publishes 5000, of which its code takes half; SmPO 2000, times 10 (2 p - 1), of which its code takes half.
BETAS = {"dpo": 2500.0, "smpo": 10000.0}
# Of a step's log-ratio: D3PO's.
PATH_BETAS = {"clipped_dpo": 0.1}
# SmPO's code normalises PickScores by their least and highest in Pick-a-Pic, and takes p from a softmax over both.
PICKSCORE_RANGE = 0.28201571106910706 - 0.11543526500463486


RANK_OBJECTIVES: "Registry[ListObjective]" = Registry("image list")


@RANK_OBJECTIVES.register("rank")
def rank(*, beta: float = 2500.0, ranked_by: RankedBy = "reward") -> ListObjective:
    """Every two images, weighed by what their swap changes in DCG: ``rank_dpo`` of text, at Diffusion-DPO's beta."""
    return rank_dpo(beta=positive(beta, "beta"), ranked_by=ranked_by)


def list_loss(objective: ListObjective, log_ratios: Tensor, scores: Tensor, counts: Tensor) -> Tensor:
    """(B,) losses of lists, from (R,) log-ratios and scores in [0, 1] and (B,) images of each row."""
    rewards, mask = pad_lists(objective.beta * log_ratios, counts)
    return objective.loss(rewards, pad_lists(scores, counts)[0], mask)


def parse_pair_objective(text: str, *, beta: float | None, betas: Mapping[str, float] = BETAS) -> Named[PairObjective]:
    """Read ``NAME:parameter=value,...`` as for text; what an image has no counterpart of is refused.

    Args:
        text: As a user writes it.
        beta: Of the log-ratio; the paper's if not given.
        betas: Those of papers.

    Raises:
        ValueError: If the objective needs tokens or no reference, or has no published beta and none is given.
    """
    named = PAIR_OBJECTIVES.parse(text, beta=betas.get(text.partition(":")[0]) if beta is None else beta)
    name, objective = named.name, named.objective
    lacks = {
        "compares without a reference, and an image's log-ratio is a difference from one": not objective.uses_reference,
        "weighs tokens": objective.needs_tokens or objective.needs_divergence,
        "compares answers to other images": bool(objective.cells),
        "adds a likelihood of the chosen answer; for images that is --sft-weight": objective.sft_weight != 0,
    }
    if reason := next((reason for reason, found in lacks.items() if found), None):
        raise UserError(f"objective {name} {reason}; expected one such as dpo, smpo, ddo, clipped_dpo or ipo")
    if beta is None and "beta=" not in text and name not in betas and "beta" in PAIR_OBJECTIVES.parameters(name):
        raise UserError(
            f"objective {name} has no beta for images that its paper gives; set --beta, to about 1 / the spread of rewards/chosen"
        )
    return named


def pair_loss(
    objective: PairObjective, log_ratios: Tensor, columns: Mapping[str, Tensor], *, mean: Mean = torch.mean
) -> tuple[Tensor, PairValues]:
    """Compute the loss of pairs.

    Args:
        objective: Its link, beta, margin and outer loss.
        log_ratios: (2 B,) h of chosen, rejected, chosen, ...
        columns: (B,) each, those that the objective reads.
        mean: Over the batch, for objectives that compare a picture with it.

    Returns:
        (B,) losses and the rewards, beta included.
    """
    linked = objective.link(log_ratios)
    rewards = PairValues(linked[0::2], linked[1::2])
    losses = preference_loss(objective, rewards, columns=columns, mean=mean)
    return losses, PairValues(*(objective.beta * value.detach() for value in rewards))

"""What a preference step logs: rewards, margin and accuracy, by quarter of difficulty too.

Shape legend: B = preference pairs.
"""

import torch
from torch import Tensor

from mmalign.losses.image_terms import CHOSEN, Cell, ImageKind
from mmalign.losses.pair_kernel import Columns, PairBatch, PairObjective, PairValues
from mmalign.training.method import Sum

NUM_QUARTILES = 4


@torch.no_grad()
def reward_metrics(objective: PairObjective, pairs: PairBatch, rewards: PairValues) -> dict[str, Sum]:
    """Measure rewards as the objective has them, with its plain beta, so that difficulty modes can be compared.

    Args:
        objective: The first of the sum.
        pairs: With columns ``pair_beta_scale`` and, where there is a difficulty, ``difficulty_quartile``.
        rewards: (B,) each, without beta, from ``compute_rewards``.
    """
    count, columns = len(rewards.chosen), pairs.columns
    chosen, rejected = objective.beta * rewards.chosen, objective.beta * _rejected_scale(objective, columns) * rewards.rejected
    margin, right = chosen - rejected, (chosen > rejected).float()
    logps, lengths = (values.view(-1, 2).sum(0) for values in (pairs.policy.sums, pairs.tokens.lengths()))
    metrics = {
        "rewards/chosen": Sum(chosen.sum(), count),
        "rewards/rejected": Sum(rejected.sum(), count),
        "rewards/margin": Sum(margin.sum(), count),
        "rewards/accuracy": Sum(right.sum(), count),
        "logps/chosen_per_token": Sum(logps[0], lengths[0]),
        "logps/rejected_per_token": Sum(logps[1], lengths[1]),
        "difficulty/beta": Sum(objective.beta * columns["pair_beta_scale"].sum(), count),
    }
    others: tuple[ImageKind, ...] = ("weakened", "other", "none")
    for image in others:
        # How much more the policy has learnt of the chosen answer from its own image than from this one.
        pair = [pairs.cells.get(Cell(image, "chosen")), pairs.cells.get(CHOSEN)]
        if all(cell is not None and cell.reference is not None for cell in pair):
            under, over = (cell.log_ratio() for cell in pair if cell is not None)
            metrics[f"rewards/over_{image}"] = Sum(objective.beta * (over - under).sum(), count)
    if "difficulty_quartile" in columns:
        for number in range(1, NUM_QUARTILES + 1):
            inside = (columns["difficulty_quartile"] == number).float()
            metrics[f"rewards/margin_q{number}"] = Sum((margin * inside).sum(), inside.sum())
            metrics[f"rewards/accuracy_q{number}"] = Sum((right * inside).sum(), inside.sum())
    return metrics


def _rejected_scale(objective: PairObjective, columns: Columns) -> float | Tensor:
    return objective.rejected_scale(columns) if callable(objective.rejected_scale) else objective.rejected_scale


SATURATED = 4.0
"""Where |margin| is above this, the logistic's slope is within 2% of 0 or of its largest, and bounded losses teach nothing."""


@torch.no_grad()
def describe_start(objective: PairObjective, rewards: PairValues) -> list[str]:
    """Say what the rewards are before the first step: zero against oneself, anything against another model (a teacher).

    Args:
        objective: Its plain beta scales them.
        rewards: (B,) each, without beta, from ``compute_rewards``.

    Returns:
        A line; none where all is zero.
    """
    scale = objective.rejected_scale if isinstance(objective.rejected_scale, float) else 1.0
    chosen, rejected = objective.beta * rewards.chosen, objective.beta * scale * rewards.rejected
    if not chosen.any() and not rejected.any():
        return []
    margin = chosen - rejected
    saturated = (margin.abs() > SATURATED).float().mean()
    return [
        f"rewards before the first step, on {len(margin)} pairs: chosen {chosen.mean():.2f}, rejected {rejected.mean():.2f}, margin "
        f"{margin.mean():.2f}; in {saturated:.0%} of them |margin| is above {SATURATED:g}, where the loss saturates"
    ]


def difficulty_quartiles(difficulty: Tensor) -> Tensor:
    """Number the quarter that each pair falls in by rank, 1 = easiest; ties go by position, so quarters are equal in size.

    Args:
        difficulty: (B,) of the whole data set.

    Returns:
        (B,) integers from 1 to 4.
    """
    rank = torch.empty(len(difficulty), dtype=torch.long)
    rank[difficulty.argsort(stable=True)] = torch.arange(len(difficulty))
    return 1 + NUM_QUARTILES * rank // max(1, len(difficulty))

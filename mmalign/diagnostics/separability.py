"""Can chosen and rejected be told apart by a straight line? If so, a model can learn the line and nothing else.

More-is-Less (arXiv:2504.02193) finds that the most separable preference sets align worst. The probe is reconstructed (ours): its
paper's repository has none.

Shape legend: P = pairs, F = features; (P, 2, F) holds chosen and rejected.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import UserError

FOLDS = 5
RIDGE = 1.0


@dataclass(frozen=True)
class Probe:
    """How often a linear probe tells a chosen response from a rejected one that it has not seen; 0.5 is guessing."""

    accuracy: float
    low: float
    """Two standard errors below, over pairs."""
    high: float


def probe_pairs(features: Tensor, *, seed: int, folds: int = FOLDS) -> Probe:
    """Cross-validate a logistic regression of chosen against rejected.

    Both responses of a pair are in the same fold. Features are standardised by the training folds; the weights have a ridge of 1, as
    is usual.

    Args:
        features: (P, 2, F).
        seed: Of the folds.
        folds: Parts; each is tested once.

    Raises:
        ValueError: If there are fewer pairs than folds.
    """
    if len(features) < folds:
        raise UserError(f"{len(features)} pairs for {folds} folds; the probe needs more pairs")
    features = features.double()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    right = torch.zeros(len(features), 2, dtype=torch.float64)
    for fold in range(folds):
        test = order[fold::folds]
        train = order[~torch.isin(order, test)]
        mean, deviation = features[train].flatten(0, 1).mean(0), features[train].flatten(0, 1).std(0)
        scaled = (features - mean) / torch.where(deviation > 1e-9, deviation, 1.0)
        weight, bias = _fit(scaled[train])
        margin = scaled[test] @ weight + bias
        # On the line itself there is nothing but to guess.
        right[test] = torch.where(margin == 0, 0.5, ((margin > 0) == torch.tensor([True, False])).double())
    by_pair = right.mean(1)
    accuracy, error = float(by_pair.mean()), 2 * float(by_pair.std()) / len(by_pair) ** 0.5
    return Probe(accuracy, max(0.0, accuracy - error), min(1.0, accuracy + error))


def surface_features(responses: Sequence[tuple[str, str]], lengths: Tensor, first_ids: Tensor) -> dict[str, Tensor]:
    """What can be seen of a response without understanding it.

    Args:
        responses: Texts of chosen and rejected.
        lengths: (P, 2) tokens.
        first_ids: (P, 2) first token of each.

    Returns:
        ``length`` (P, 2, 1), ``first token`` (P, 2, kinds of it), ``punctuation`` (P, 2, marks).
    """
    kinds, place = first_ids.unique(return_inverse=True)
    marks = [[[float(text.count(mark)) for mark in string.punctuation] for text in pair] for pair in responses]
    return {
        "length": lengths[..., None].double(),
        "first token": F.one_hot(place, len(kinds)).double(),
        "punctuation": torch.tensor(marks, dtype=torch.float64),
    }


def _fit(features: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise the summed logistic loss + ridge / 2 |weight|^2: convex, so LBFGS finds the one minimum."""
    rows = features.flatten(0, 1)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(features))
    weight, bias = torch.zeros(rows.shape[1], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.softplus(-sign * (rows @ weight + bias)).sum() + RIDGE / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()

"""Accuracy and calibration of class probabilities, and the search for how two heads are mixed.

Shape legend: N = images, C = classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.losses.classifier import mix_probabilities

CE_HEAD_WEIGHTS = tuple(round(0.05 * i, 2) for i in range(21))
# The paper's seven, and below them what its Fig. on ImageNet found better.
KD_HEAD_TEMPERATURES = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)


class MixingSearch(NamedTuple):
    """The best pair of the grid, and all of it."""

    ce_head_weight: float
    kd_head_temperature: float
    accuracy: float
    grid: Tensor
    """(weights, temperatures) accuracies."""


def score_probabilities(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> dict[str, float]:
    """Compute accuracy, expected calibration error (arXiv:1706.04599, equal-width bins) and negative log-likelihood.

    Args:
        probabilities: (N, C).
        labels: (N,).
        bins: Of confidence.
    """
    probabilities = probabilities.double()
    confidence, guess = probabilities.max(-1)
    right = (guess == labels).double()
    number = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, number, right - confidence)
    chosen = probabilities.gather(1, labels[:, None]).clamp_min(1e-12)
    return {"accuracy": right.mean().item(), "ece": (gaps.abs().sum() / len(labels)).item(), "nll": -chosen.log().mean().item()}


def search_mixing(ce_logits: Tensor, kd_logits: Tensor, labels: Tensor) -> MixingSearch:
    """Try the paper's grid (21 weights, here 10 temperatures) by accuracy, and among equals by negative log-likelihood.

    Accuracy alone is flat over much of the grid, and its first best pair is often far too sure. Of what is still equal the first wins:
    weights from 0, and for each the temperatures from low.

    Args:
        ce_logits: (N, C), of validation images, never of test images.
        kd_logits: (N, C).
        labels: (N,).
    """
    pairs = [(a, b) for a in CE_HEAD_WEIGHTS for b in KD_HEAD_TEMPERATURES]

    def mix(pair: tuple[float, float]) -> Tensor:
        return mix_probabilities(ce_logits, kd_logits, ce_head_weight=pair[0], kd_head_temperature=pair[1])

    accuracies = torch.tensor([(mix(pair).argmax(-1) == labels).double().mean().item() for pair in pairs], dtype=torch.float64)
    equals = [pairs[number] for number in (accuracies == accuracies.max()).nonzero()[:, 0].tolist()]
    weight, temperature = min(equals, key=lambda pair: score_probabilities(mix(pair), labels)["nll"])
    return MixingSearch(weight, temperature, accuracies.max().item(), accuracies.reshape(len(CE_HEAD_WEIGHTS), len(KD_HEAD_TEMPERATURES)))

"""Heads in closed form on frozen features: fitted in one pass, their one number chosen on images that are not in the fit.

Shape legend: N = support images, B = held images, A = values tried, C = classes, D = feature width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.classifier.kernel_head import KernelHead, hilbert_probabilities, squared_distances
from mmalign.classifier.metrics import score_probabilities
from mmalign.classifier.ridge import Ridge

ALPHAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# What ridge's scores are multiplied with before the softmax.
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_CHUNK = 256


class Support(NamedTuple):
    """Images that a head is made of, those with labels first."""

    features: Tensor
    """(N, D)."""
    values: Tensor
    """(N, C) class probabilities."""
    weights: Tensor
    """(N,), summing to 1."""


class Held(NamedTuple):
    """Images that choose a head's number."""

    features: Tensor
    """(B, D)."""
    labels: Tensor
    """(B,)."""
    inside: bool
    """Whether they are the support's first images, each of which is then left out of its own prediction."""
    source: str
    """What they are, in words."""


class Tried(NamedTuple):
    """A value of alpha or of the penalty, and how it does on the held images."""

    value: float
    scale: float
    """Ridge's likeliest scale of the scores; 1 of a kernel, which gives probabilities."""
    accuracy: float
    nll: float


def join_support(
    labeled: tuple[Tensor, Tensor] | None, taught: tuple[Tensor, Tensor] | None, *, num_classes: int, label_weight: float
) -> Support:
    """Join labelled images and those that a teacher looked at.

    Args:
        labeled: Features (L, D) and labels (L,), or None.
        taught: Features (U, D) and probabilities (U, C), or None.
        num_classes: C.
        label_weight: Weight of all labelled images together, where there are both; each kind counts as a mean over its images.
    """
    share = label_weight if taught is not None else 1.0
    parts = []
    if labeled is not None:
        parts.append((labeled[0], F.one_hot(labeled[1], num_classes).float(), share))
    if taught is not None:
        parts.append((*taught, 1.0 if labeled is None else 1 - share))
    weights = torch.cat([one.new_full((len(one),), weight / len(one)) for one, _, weight in parts])
    features, values = torch.cat([one for one, _, _ in parts]), torch.cat([one for _, one, _ in parts])
    return Support(features, values, weights)


def fit_hilbert(support: Support, held: Held | None, alphas: Sequence[float]) -> tuple[KernelHead, list[Tried]]:
    """Choose alpha on the held images, the only one without any, and put the support into a head; chosen with what is saved, in float16."""
    support = support._replace(features=F.normalize(support.features, dim=-1).half().float(), values=support.values.half().float())
    tried = []
    if held is not None:
        found = predict_hilbert(support, held, alphas)
        tried = [_try(probabilities, held, value=alpha) for alpha, probabilities in zip(alphas, found, strict=True)]
    alpha = choose(tried).value if tried else alphas[0]
    head = KernelHead(support.features.shape[1], support.values.shape[1], num_support=len(support.features), alpha=alpha)
    head.fill(support.features, support.values, support.weights)
    return head, tried


def predict_hilbert(support: Support, held: Held, alphas: Sequence[float]) -> Tensor:
    """Probabilities (A, B, C) of the held images by each alpha."""
    parts = []
    for start in range(0, len(held.features), _CHUNK):
        squared = squared_distances(held.features[start : start + _CHUNK], support.features)
        if held.inside:
            own = torch.arange(len(squared))
            squared[own, start + own] = torch.inf
        found = [hilbert_probabilities(squared, support.values, alpha=alpha, weights=support.weights) for alpha in alphas]
        parts.append(torch.stack(found))
    return torch.cat(parts, 1)


def fit_ridge(support: Support, held: Held, penalties: Sequence[float]) -> tuple[nn.Linear, list[Tried]]:
    """Choose the penalty and the scale of the scores on the held images; the head is linear, its softmax the probabilities."""
    ridge = Ridge(support.features, support.values, support.weights)
    tried = []
    for penalty in penalties:
        scores = ridge.leave_one_out(len(held.labels), penalty) if held.inside else ridge.predict(held.features, penalty)
        scaled = [_try((scale * scores).softmax(-1), held, value=penalty, scale=scale) for scale in SCALES]
        tried.append(min(scaled, key=lambda one: one.nll))
    best = choose(tried)
    weight, bias = ridge.solve(best.value)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(best.scale * weight)
        head.bias.copy_(best.scale * bias)
    return head, tried


def choose(tried: Sequence[Tried]) -> Tried:
    """The most accurate value; of equals the likeliest, then the first."""
    return min(tried, key=lambda one: (-one.accuracy, one.nll))


def _try(probabilities: Tensor, held: Held, *, value: float, scale: float = 1.0) -> Tried:
    scores = score_probabilities(probabilities, held.labels)
    return Tried(value, scale, scores["accuracy"], scores["nll"])

"""Accuracy and calibration of both heads, mixed and the teacher, and the search for how the heads are mixed.

Shape legend: N = images, C = classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmalign.classifier.augment import make_views
from mmalign.classifier.dual_head import DualHead, DualHeadOutput, Mixing
from mmalign.classifier.image_cache import CachedImages
from mmalign.classifier.splits import Indices
from mmalign.losses.classifier import mix_probabilities
from mmalign.tables import text_table

Scores = dict[str, dict[str, float]]
"""Head -> metric -> value."""

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


def compute_logits(model: DualHead, images: CachedImages, index: Indices | None = None, *, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Run the classifier on the centres of images, on its device: CE and KD logits (N, C) on the CPU, float32."""
    parts = [(output.ce_logits.float().cpu(), output.kd_logits.float().cpu()) for output in _run(model, images, index, batch_size)]
    ce_logits, kd_logits = (torch.cat(logits) for logits in zip(*parts, strict=True))
    return ce_logits, kd_logits


def compute_features(model: DualHead, images: CachedImages, index: Indices, *, batch_size: int = 256) -> Tensor:
    """Run the backbone on the centres of images, on its device: features (N, D) on the CPU, float32."""
    return torch.cat([output.features.float().cpu() for output in _run(model, images, index, batch_size)])


@torch.no_grad()
def _run(model: DualHead, images: CachedImages, index: Indices | None, batch_size: int) -> Iterator[DualHeadOutput]:
    device, preprocessing = next(model.parameters()).device, model.settings.preprocessing
    index = np.arange(len(images.ids)) if index is None else index
    for start in range(0, len(index), batch_size):
        stored = torch.from_numpy(images.pixels[index[start : start + batch_size]]).to(device)
        views = make_views(stored, None, augmentation="none", side=preprocessing.image_size)
        yield model(preprocessing.normalize(views))


def keep_classes(logits: Tensor, kept: Sequence[int]) -> Tensor:
    """Let no other class be chosen: (N, C) with minus infinity elsewhere."""
    limited = torch.full_like(logits, -torch.inf)
    limited[:, list(kept)] = logits[:, list(kept)]
    return limited


def find_probabilities(model: DualHead, logits: tuple[Tensor, Tensor], *, mixing: Mixing | None = None) -> dict[str, Tensor]:
    """Probabilities (N, C) by head: of the CE head, and where there are two of the KD head and mixed."""
    ce_logits, kd_logits = logits
    found = {"ce_head": ce_logits.softmax(-1)}
    if model.kd_head is not None:
        found |= {"kd_head": kd_logits.softmax(-1), "mixed": (mixing or model.settings.mixing).mix(ce_logits, kd_logits)}
    return found


def score_classifier(
    model: DualHead, logits: tuple[Tensor, Tensor], labels: Tensor, *, teacher: Tensor | None = None, mixing: Mixing | None = None
) -> Scores:
    """Score CE head, KD head, their mixture (the model's own if no mixing is given) and the teacher, if any.

    The teacher's logits (N, C) count where they are numbers.
    """
    found = find_probabilities(model, logits, mixing=mixing)
    scores = {name: score_probabilities(probabilities, labels) for name, probabilities in found.items()}
    if teacher is not None and (taught := ~teacher.isnan().any(-1)).any():
        scores["teacher"] = score_probabilities(teacher[taught].softmax(-1), labels[taught])
    return scores


def tune_mixing(model: DualHead, logits: tuple[Tensor, Tensor], labels: Tensor, *, source: str) -> list[list[float]]:
    """Search the grid and put the best pair into the model's settings; return the grid's accuracies, (weights, temperatures)."""
    found = search_mixing(*logits, labels)
    model.set_mixing(
        Mixing(
            ce_head_weight=found.ce_head_weight,
            kd_head_temperature=found.kd_head_temperature,
            source=f"tuned on {len(labels)} images of {source}: accuracy {found.accuracy:.4f}",
        )
    )
    return found.grid.tolist()


def format_scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Lay the scores out as a table."""
    rows = [(name, f"{100 * s['accuracy']:.2f}%", f"{100 * s['ece']:.2f}%") for name, s in scores.items()]
    return text_table([("", "accuracy", "calibration error"), *rows])

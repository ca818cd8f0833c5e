"""A head without training: the singular kernel that infinitely wide and deep networks classify by (arXiv:2204.14126).

Shape legend: B = images, C = classes, D = feature width, N = support images.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Squared distance below which float16 features and float32 cosines can't tell an image from a support image.
SAME = 1e-6
# Log-kernel of a support image with itself: above any other, whatever alpha.
_SINGULAR = 1e4


def squared_distances(features: Tensor, support: Tensor) -> Tensor:
    """Compute |x - x_i|^2 = 2 - 2 cos between directions: (B, D) and (N, D) to (B, N).

    Seen from the support's mean: 2 - 2 cos in float32 would lose the small distances of features that all point one way.
    """
    unit = F.normalize(support, dim=-1)
    # Not unit.mean(0): its name in an ONNX file would be that of the pixels' mean.
    mean = unit.sum(0) / len(unit)
    one, other = F.normalize(features, dim=-1) - mean, unit - mean
    return (one.square().sum(-1)[:, None] + other.square().sum(-1) - 2 * one @ other.t()).clamp_min(0)


def hilbert_probabilities(squared: Tensor, values: Tensor, *, alpha: float, weights: Tensor | None = None) -> Tensor:
    """Compute p(c | x) = sum_i w_i K(x, x_i) y_ic / sum_i w_i K(x, x_i), K = |x - x_i|^-alpha (arXiv:2204.14126; form from memory).

    Where x is a support image, the limit stands: it has that image's own values. In logarithms, so that no power overflows.

    Args:
        squared: (B, N) squared distances; infinite where a support image does not count.
        values: (N, C) probabilities y.
        alpha: Order of the singularity; the paper's limit is the dimension of the data.
        weights: (N,) weights w; equal if not given.

    Returns:
        (B, C) probabilities.
    """
    kernel = -alpha / 2 * squared.clamp_min(SAME).log()
    kernel = kernel.masked_fill(squared <= SAME, _SINGULAR)
    return (kernel if weights is None else kernel + weights.log()).softmax(-1) @ values


class KernelHead(nn.Module):
    """Features (B, D) to log-probabilities (B, C), by the support images that it holds."""

    support: Tensor
    values: Tensor
    weights: Tensor

    def __init__(self, width: int, num_classes: int, *, num_support: int, alpha: float) -> None:
        """Make room for the support images: float16 features and values, float32 weights."""
        super().__init__()
        self.alpha = alpha
        self.register_buffer("support", torch.zeros(num_support, width, dtype=torch.float16))
        self.register_buffer("values", torch.full((num_support, num_classes), 1 / num_classes, dtype=torch.float16))
        self.register_buffer("weights", torch.ones(num_support))

    def fill(self, support: Tensor, values: Tensor, weights: Tensor) -> None:
        """Take features (N, D), of which the direction counts, values (N, C) and weights (N,)."""
        self.support.copy_(F.normalize(support, dim=-1))
        self.values.copy_(values)
        self.weights.copy_(weights)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, C); the softmax of it is the kernel's mean."""
        squared = squared_distances(features.float(), self.support.float())
        found = hilbert_probabilities(squared, self.values.float(), alpha=self.alpha, weights=self.weights)
        return found.clamp_min(1e-12).log()

"""Kernel ridge regression from a few images to many, as a loss of the few (KRR-ST, arXiv:2310.06511).

Shape legend: M = synthetic images, B = real images, D = width of an inner network's features, E = width of the target's features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import UserError
from mmalign.losses.doubles import to_double

RIDGE = 1e-6
"""Lambda as a share of the kernel's trace."""


def kernel_ridge_predict(features: Tensor, targets: Tensor, real_features: Tensor) -> Tensor:
    """Predict K_rs (K_ss + lambda I)^-1 Y_s with K = f f^T, a constant 1 appended to f, lambda = 1e-6 trace(K_ss).

    No gradient flows through lambda, as in the authors' code. Solved in float64: with more images than features K_ss has no full rank.

    Args:
        features: (M, D), of the synthetic images.
        targets: (M, E), Y_s.
        real_features: (B, D).

    Returns:
        (B, E) float64.

    Raises:
        ValueError: If the shapes don't fit.
    """
    fits = features.ndim == targets.ndim == real_features.ndim == 2 and len(features) == len(targets)
    if not fits or features.shape[1] != real_features.shape[1]:
        raise UserError(
            f"features are {tuple(features.shape)}, targets {tuple(targets.shape)} and real features {tuple(real_features.shape)}; "
            "expected (M, D), (M, E) and (B, D)"
        )
    synthetic, real = (F.pad(to_double(one), (0, 1), value=1.0) for one in (features, real_features))
    kernel = synthetic @ synthetic.t()
    penalty = RIDGE * kernel.detach().trace()
    identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    return real @ (synthetic.t() @ torch.linalg.solve(kernel + penalty * identity, to_double(targets)))


def kernel_ridge_error(features: Tensor, targets: Tensor, real_features: Tensor, real_targets: Tensor) -> Tensor:
    """Compute the mean squared error of each real image's predicted target, (B,) float64 (arXiv:2310.06511, the outer loss).

    Args:
        features: (M, D), of the synthetic images.
        targets: (M, E).
        real_features: (B, D).
        real_targets: (B, E).
    """
    return (kernel_ridge_predict(features, targets, real_features) - to_double(real_targets)).square().mean(-1)

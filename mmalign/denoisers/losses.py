"""One number for an image as a policy's log-ratio: what stands where log pi - log ref stands in text.

Every preference loss on it is one of ``mmalign.losses``: ``dpo``, ``smpo``, ``ddo``, ``clipped_dpo`` and the list loss of RankDPO.

Shape legend: B = images, ... = channels, height and width.
"""

from torch import Tensor

from mmalign.losses.scores import at_least_float32


def mean_square(difference: Tensor) -> Tensor:
    """(B,) mean over pixels and channels of the squared difference, (B, ...)."""
    return at_least_float32(difference).square().flatten(1).mean(1)


def log_ratio(policy_error: Tensor, reference_error: Tensor) -> Tensor:
    """Compute h = -(m - r) (Diffusion-DPO, arXiv:2311.12908, Eq. 14 without its constants).

    Args:
        policy_error: (B,) m, the policy's mean squared error at x_t.
        reference_error: (B,) r, the reference's at the same x_t.

    Returns:
        (B,); the published beta of Diffusion-DPO is twice the beta of ``dpo`` on it.
    """
    return reference_error - policy_error


def step_error(reached: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Compute -log p of one step of a sampled path, without its constant (D3PO, arXiv:2311.13231).

    ``log_ratio`` of the policy's and the reference's is log p - log p_ref: the constant is that of both.

    Args:
        reached: (B, ...) x_{t-1}, as it was sampled.
        mean: (B, ...) of x_{t-1} under the model.
        sigma: Standard deviation of the step; broadcasts to (B, ...).

    Returns:
        (B,) (x - mu)^2 / (2 sigma^2), mean over pixels.
    """
    return mean_square((reached - mean) / sigma) / 2

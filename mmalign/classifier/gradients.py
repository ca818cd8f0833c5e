"""Gradients of both losses in the weights that they share: how far they pull apart, and PCGrad, which lets neither undo the other.

Shape legend: P = shared weights, flattened.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Gradients = Sequence[Tensor]
"""One for each parameter, zeros where a loss doesn't reach it."""


def compute_gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """A loss's gradients, with its graph kept."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def flatten(gradients: Gradients) -> Tensor:
    """(P,) float32."""
    return torch.cat([gradient.flatten().float() for gradient in gradients])


def compute_gradient_cosine(ce: Tensor, kd: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Compute the cosine of both losses' gradients in shared weights; below 0 they pull apart, the paper's reason for two heads."""
    first, second = (flatten(compute_gradients(loss, parameters)) for loss in (ce, kd))
    return torch.nn.functional.cosine_similarity(first, second, dim=0)


def project_conflicts(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Take from each gradient its part along the other, where they point apart (PCGrad, arXiv:2001.06782).

    Args:
        first: (P,).
        second: (P,).

    Returns:
        Both, (P,), each projected from the originals; as they are where their product is not negative.
    """
    product = first @ second
    if product >= 0:
        return first, second
    return first - product / second.square().sum() * second, second - product / first.square().sum() * first


def surrogate_loss(ce: Tensor, kd: Tensor, *, shared: Sequence[nn.Parameter], own: Sequence[nn.Parameter]) -> Tensor:
    """A loss whose value is that of both together, and whose gradient in the shared weights is PCGrad's sum.

    Args:
        ce: First loss, a scalar.
        kd: Second one.
        shared: Weights that both reach and that are projected.
        own: Other weights; they get both gradients as they are.
    """
    parameters = [*shared, *own]
    first, second = (compute_gradients(loss, parameters) for loss in (ce, kd))
    flat = sum(project_conflicts(*(flatten(one[: len(shared)]) for one in (first, second))))
    assert isinstance(flat, Tensor)
    projected = [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in shared]), shared, strict=True)]
    combined = [*projected, *(a + b for a, b in zip(first[len(shared) :], second[len(shared) :], strict=True))]
    pulled = torch.stack([(p * gradient.to(p)).sum() for p, gradient in zip(parameters, combined, strict=True)]).sum()
    return pulled + (ce + kd - pulled).detach()

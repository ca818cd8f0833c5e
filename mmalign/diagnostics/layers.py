"""What alignment did layer by layer: SPINAL's two traces (arXiv:2601.06238).

The two formulas are the paper's. Which states enter, the logit lens, the window of the fit and that states are not centred are
reconstructed (ours); its aggregate score is left out.

Shape legend: K = tokens, D = hidden width, L = decoder layers, V = vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.engine.head import chunks
from mmalign.engine.hidden_states import OutputHead
from mmalign.errors import UserError

HEAD_SHARE = 1 / 8
"""Share of the largest singular values that the fit leaves out: they are means and outliers, not the tail. Ours."""
NOISE = 1e-6
"""Singular values below this share of the largest are rounding."""


@dataclass(frozen=True)
class LayerTrace:
    """One model's trace through its layers, from the first."""

    exponent: list[float]
    """(L,) alpha: how fast the spectrum of a layer's states falls."""
    length: list[float]
    """(L - 1,) Fisher-Rao distance between the next-token distributions that neighbouring layers would give."""


def spectral_exponent(singular: Tensor) -> float:
    """Fit the tail of a spectrum: -slope of log sigma_k over log k.

    Args:
        singular: (N,) singular values, falling.

    Raises:
        ValueError: If fewer than three values are left to fit.
    """
    rank = torch.arange(1, len(singular) + 1, dtype=torch.float64)
    kept = (rank >= max(1, round(HEAD_SHARE * len(singular)))) & (singular > NOISE * singular[0])
    x, y = rank[kept].log(), singular.double()[kept].log()
    if len(x) < 3:
        raise UserError(f"{len(x)} singular values to fit; expected three or more: give more tokens")
    x, y = x - x.mean(), y - y.mean()
    return float(-(x * y).sum() / x.square().sum())


def fisher_rao(p: Tensor, q: Tensor) -> Tensor:
    """2 arccos of the sum of sqrt(p q): (..., V) distributions to (...) distances, from 0 to pi."""
    return 2 * (p.double() * q.double()).sqrt().sum(-1).clamp(max=1.0).arccos()


@torch.no_grad()
def trace_layers(layers: Tensor, head: OutputHead) -> LayerTrace:
    """Trace a model.

    Args:
        layers: (L, K, D) states of each layer.
        head: The model's, for the logit lens.

    Returns:
        The trace; lengths are means over tokens.
    """
    exponents = [spectral_exponent(torch.linalg.svdvals(layer.double())) for layer in layers]
    device, size = head.head.weight.device, len(head.head.weight)
    total = torch.zeros(len(layers) - 1, dtype=torch.float64)
    for part in chunks(layers.shape[1], size):
        before = None
        for number, layer in enumerate(layers):
            after = head.lens(layer[part].to(device)).softmax(-1)
            if before is not None:
                total[number - 1] += fisher_rao(before, after).sum().cpu()
            before = after
    return LayerTrace(exponents, (total / layers.shape[1]).tolist())

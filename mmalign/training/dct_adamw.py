"""AdamW whose moments live in a few columns of a cosine basis (DCT-AdamW, arXiv:2505.17967).

A matrix's gradient is turned into the cosine basis of its smaller side; the columns with the largest l1 norm are kept, anew each step,
and Adam's moments are held for them alone. No basis is stored: a column is known by its number, and the transform is an FFT.

Shape legend: a matrix lies as (M, N) with N its smaller side; R = rank, the columns kept.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmalign.errors import UserError
from mmalign.losses.doubles import widest_dtype

LARGEST_SIDE = 32_000
"""Matrices with a longer side, as vocabularies have, take AdamW."""


def dct(values: Tensor) -> Tensor:
    """Transform the last dimension by the orthonormal DCT-II, through an FFT of the same length (Makhoul 1980).

    Args:
        values: (..., N) float32 or float64.

    Returns:
        (..., N) ``values @ cosine_columns(N, all)``.
    """
    size = values.shape[-1]
    reordered = torch.cat([values[..., ::2], values[..., 1::2].flip(-1)], -1)
    angle = torch.arange(size, device=values.device, dtype=values.dtype) * (-math.pi / (2 * size))
    turned = (torch.fft.fft(reordered) * torch.polar(torch.ones_like(angle), angle)).real
    scale = torch.full_like(angle, math.sqrt(2 / size))
    scale[:1] = math.sqrt(1 / size)
    return turned * scale


def cosine_columns(size: int, columns: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Make columns of the orthonormal DCT-II basis.

    Args:
        size: N.
        columns: (R,) their numbers.
        dtype: Of the result; the angles are exact.

    Returns:
        (N, R) with orthonormal columns.
    """
    exact = widest_dtype(columns.device)
    place = 2 * torch.arange(size, device=columns.device) + 1
    # A whole turn is 4 N steps: less than that is exact in float32 too.
    steps = (place[:, None] * columns) % (4 * size)
    cosines = torch.cos(math.pi / (2 * size) * steps.to(exact))
    return (cosines * torch.where(columns == 0, 1.0, 2.0).to(exact).div(size).sqrt()).to(dtype)


def largest_columns(transformed: Tensor, rank: int) -> Tensor:
    """Number the columns with the largest l1 norm: (M, N) to (R,), ascending."""
    return transformed.abs().sum(0).topk(rank).indices.sort().values


class DctAdamW(Optimizer):
    """AdamW, in a changing cosine subspace for matrices larger than the rank both ways, as it is for everything else.

    When the kept columns change, moments are rotated into the new subspace. Between two sets of columns of one orthonormal basis that
    rotation is a selection: what stays keeps its moments, what is new starts from zero.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        rank: int = 128,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        error_feedback: bool = False,
    ) -> None:
        """Take parameters or groups of them.

        Args:
            params: As every optimiser takes them; a group may have its own ``rank`` and other values.
            lr: Learning rate.
            rank: Columns kept of a matrix. A matrix whose smaller side is not larger takes AdamW.
            betas: Of the two moments.
            eps: Added to the root of the second.
            weight_decay: Decoupled, as AdamW's.
            error_feedback: Add to the next gradient what the columns left out of this one. Holds a whole matrix for it.

        Raises:
            ValueError: If the rank is below 1.
        """
        if rank < 1:
            raise UserError(f"rank is {rank}; expected at least 1, such as 128")
        defaults = {"lr": lr, "rank": rank, "betas": betas, "eps": eps, "weight_decay": weight_decay, "error_feedback": error_feedback}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                change = _low_rank_change if is_low_rank(parameter, group["rank"]) else _adam_change
                parameter.add_(change(parameter.grad, state, group), alpha=-group["lr"])
        return loss


def is_low_rank(parameter: Tensor, rank: int) -> bool:
    """Whether a parameter's moments are held in a subspace."""
    return parameter.ndim == 2 and rank < min(parameter.shape) and max(parameter.shape) < LARGEST_SIDE


def _adam_change(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Adam's normalised step: corrected mean / (root of the corrected mean square + eps)."""
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    first, second = state["exp_avg"], state["exp_avg_sq"]
    (beta1, beta2), step = group["betas"], state["step"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second.sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
    return first / root / (1 - beta1**step)


def _low_rank_change(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The same in the columns that matter now, brought back to the whole matrix."""
    wide = gradient.shape[0] < gradient.shape[1]
    whole = (gradient.T if wide else gradient).float()
    if group["error_feedback"] and "left_out" in state:
        whole = whole + state["left_out"]
    size = whole.shape[1]
    transformed = dct(whole)
    columns = largest_columns(transformed, group["rank"])
    if "kept" in state:
        _carry_moments(state, columns)
    # A mask and not numbers: a checkpoint's states are cast to the parameter's type, and a mask outlives that.
    state["kept"] = torch.zeros(size, dtype=torch.bool, device=columns.device).index_fill_(0, columns, True)
    kept = transformed[:, columns]
    basis = cosine_columns(size, columns)
    if group["error_feedback"]:
        state["left_out"] = whole - kept @ basis.T
    change = _adam_change(kept.to(gradient.dtype), state, group).float() @ basis.T
    return (change.T if wide else change).to(gradient.dtype)


def _carry_moments(state: dict[str, Any], columns: Tensor) -> None:
    """Select, for each new column, its moments under the old ones, or zero."""
    old = state["kept"].bool()
    place = (old.long().cumsum(0) - 1)[columns]
    stays = old[columns]
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.where(stays, state[name][:, place.clamp(min=0)], 0)

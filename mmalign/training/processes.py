"""Numbers over the batches of all processes.

Shape legend: B = values of this process.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient, since each process's loss reads the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the sum."""
        return _sum(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient."""
        return _sum(gradients[0])


def _sum(values: Tensor) -> Tensor:
    values = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(values)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """Compute the mean of (B,) values over all processes; B may differ from one to another.

    The gradient is that of one process with all values, where each process's loss is a sum that the trainer adds up.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values.mean()
    count = torch.tensor([len(values)], dtype=values.dtype, device=values.device)
    return _SumOverProcesses.apply(values.sum()) / _sum(count)[0]

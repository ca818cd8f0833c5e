"""Numbers over the batches of all processes.

Shape legend: B = values of this process.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def mean_over_processes(values: Tensor) -> Tensor:
    """Compute the mean of (B,) values over all processes; B may differ from one to another.

    The gradient is that of one process with all values, where each process's loss is a sum that the trainer adds up.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values.mean()
    count = torch.tensor([len(values)], dtype=values.dtype, device=values.device)
    dist.all_reduce(count)
    return all_reduce(values.sum()) / count[0]

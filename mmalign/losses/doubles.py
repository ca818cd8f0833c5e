"""Numbers of 64 bits, as far as a device has them: Apple's GPUs (MPS) have none."""

import torch
from torch import Tensor


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return float64; float32 for MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_double(values: Tensor) -> Tensor:
    """Convert to float64; what is on MPS goes to the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()

"""A model in memory and its processor, with what they are known by: a fingerprint, as a checkpoint has one."""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import nn

from mmalign.held import PREFIX


class HeldModel(NamedTuple):
    """A model that is in memory already."""

    model: Any
    processor: Any
    weights: str
    """Of its weights as they are when it is held: training changes them."""
    processor_files: str

    @property
    def name(self) -> str:
        """What options call it; the same for the same weights, so that a stopped run can be resumed."""
        return f"{PREFIX}{type(self.model).__name__}-{self.weights}"

    @property
    def dtype(self) -> str:
        """The precision of its weights."""
        return str(self.model.dtype).removeprefix("torch.")


def hash_weights(model: nn.Module) -> str:
    """Hash names, forms and bytes of all weights and buffers that are saved; 12 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]

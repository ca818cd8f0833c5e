"""A model in half precision that is asked which numbers it computes, not how exactly."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from mmalign.models.quantize import find_four_bit, is_quantized


@contextmanager
def in_float32(model: nn.Module) -> Iterator[bool]:
    """Hold a model's half-precision weights in float32 for a while; they come back bit for bit, because the way there loses nothing.

    Products of 4-bit weights run in float32 too, and autocast is off.

    Yields:
        Whether the model now computes in float32: not if its memory would not hold it, or its weights are quantised by other means.
    """
    halves = [tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.dtype in (torch.bfloat16, torch.float16)]
    four_bit = find_four_bit(model)
    if (is_quantized(model) and not four_bit) or not _fit(halves):
        yield False
        return
    dtypes, products = [tensor.dtype for tensor in halves], [layer.compute_dtype for layer in four_bit]
    try:
        for tensor in halves:
            tensor.data = tensor.data.float()
        for layer in four_bit:
            layer.compute_dtype = torch.float32
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield True
    finally:
        for tensor, dtype in zip(halves, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)
        for layer, dtype in zip(four_bit, products, strict=True):
            layer.compute_dtype = dtype


def _fit(halves: list[Tensor]) -> bool:
    """Whether there is room for these tensors at twice their size; a system without memory kills a process without a word."""
    if not halves:
        return True
    # They are replaced one by one, so that only the largest is there twice.
    extra = sum(tensor.nbytes for tensor in halves) + 2 * max(tensor.nbytes for tensor in halves)
    device = halves[0].device
    if device.type == "cpu":
        return extra < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    try:
        return extra < torch.accelerator.get_memory_info(device)[0]
    except (RuntimeError, ValueError):
        # A backend that doesn't tell.
        return False

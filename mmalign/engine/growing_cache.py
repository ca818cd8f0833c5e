"""A cache of keys and values that is written in place: stock caches copy all of it for every token.

Shape legend: R = rows, H = heads, N = tokens so far, D = width of a head.
"""

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

FIRST, MOST = 8, 128
"""Tokens that there is room for at first, and at most: twice as many each time that a row is full, so that short answers take little."""


class GrowingLayer(DynamicLayer):
    """Keys and values of a layer: (R, H, N, D) views of memory with room for more tokens. Not for passes with a gradient."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        """Take over what a layer holds; nothing is copied yet."""
        super().__init__()
        self.__dict__.update(layer.__dict__)
        self._keys, self._values = _Room(), _Room()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens, and return all of them."""
        keys, values = self._keys.append(self.keys, key_states), self._values.append(self.values, value_states)
        self.keys, self.values = keys, values
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Make rows anew from those there are; the memory of the old ones is free at once."""
        super().batch_select_indices(indices)
        self._keys, self._values = _Room(), _Room()


class _Room:
    """Memory with room for more tokens, and the view of those that were written."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._written: Tensor | None = None
        self._more = FIRST

    def append(self, held: Tensor, states: Tensor) -> Tensor:
        """Write tokens behind those held, and return a view of all; those held are copied where they stand elsewhere or fill the memory."""
        start, end = held.shape[-2], held.shape[-2] + states.shape[-2]
        memory = self._memory
        if memory is None or held is not self._written or end > memory.shape[-2]:
            self._memory = memory = held.new_empty(*held.shape[:-2], end + self._more, held.shape[-1])
            memory[..., :start, :] = held
            self._more = min(2 * self._more, MOST)
        memory[..., start:end, :] = states
        self._written = memory[..., :end, :]
        return self._written


def grow_in_place(cache: Cache) -> None:
    """Let the layers of a cache that hold all tokens be written in place; others, such as sliding windows, stay as they are."""
    cache.layers = [GrowingLayer(layer) if type(layer) is DynamicLayer and layer.get_seq_length() else layer for layer in cache.layers]

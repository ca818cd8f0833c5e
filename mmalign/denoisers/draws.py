"""What is drawn of each row at each step: the same whoever draws it, so that a resumed run and any split of a batch agree.

Shape legend: B = rows, ... = channels, height and width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor


class Draws(NamedTuple):
    """Random numbers of a batch's rows."""

    noise: Tensor
    """(B, ...) n."""
    times: Tensor
    """(B,) a step of the scheduler, or a point of a grid."""
    chance: Tensor
    """(B,) from 0 to 1, for whatever happens to a share of the rows."""


def draw_rows(rows: Sequence[int], *, step: int, seed: int, shape: Sequence[int], num_times: int) -> Draws:
    """Draw, from a generator for each row and step.

    Args:
        rows: Their numbers in the data.
        step: Of the optimiser.
        seed: The run's.
        shape: Of one image.
        num_times: Times are drawn from 0 to this, which is left out.
    """
    found = [_draw_row(row, step, seed, shape, num_times) for row in rows]
    return Draws(*(torch.stack(values) for values in zip(*found, strict=True)))


def make_seed(*numbers: int) -> int:
    """A generator's seed from several numbers."""
    return xxhash.xxh3_64_intdigest(" ".join(map(str, numbers)).encode()) >> 1


def _draw_row(row: int, step: int, seed: int, shape: Sequence[int], num_times: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(make_seed(seed, step, row))
    noise = torch.randn(tuple(shape), generator=generator)
    return noise, torch.randint(num_times, (), generator=generator), torch.rand((), generator=generator)

"""Which shard files a process scores: every N-th, so that processes and machines need not talk to each other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState

from mmalign.errors import UserError

Item = TypeVar("Item")
# One process may have the longest texts; the others wait for it at the end and at no other time.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Share:
    """Part ``index`` of ``count``, from 0; the whole is part 0 of 1."""

    index: int = 0
    count: int = 1

    def take(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this part of the items: one in ``count``."""
        return items[self.index :: self.count]


def parse_share(text: str) -> Share:
    """Read ``i/N``, i from 1.

    Raises:
        ValueError: If it is not a part of a whole.
    """
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise UserError(f"shard is {text!r}; expected i/N with i from 1 to N, such as 1/8 on the first of eight machines")
    return Share(int(first) - 1, int(second))


def split_among_processes(share: Share) -> Share:
    """Split a part among the processes that ``accelerate launch`` or ``torchrun`` started; each gets its own accelerator."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return share
    # Without cpu=True, accelerate takes launched processes on a machine without accelerators for lone ones.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    return Share(share.index * state.num_processes + state.process_index, share.count * state.num_processes)


def wait_for_all() -> bool:
    """Wait until each launched process is here.

    Returns:
        Whether this is the one that goes on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    state = PartialState()
    state.wait_for_everyone()
    return state.is_main_process

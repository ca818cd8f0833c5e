"""Run by two processes: one command of mmalign, and then whether its process group is left.

``slow`` before the command lets each step take a third of a second. Where FSDP was launched, a CPU is sharded as a GPU would be.
"""

import os
import sys

import torch
import torch.distributed as dist

from mmalign.cli import main
from mmalign.runs import training
from tests.survival.faults import slow_steps
from tests.training.sharded_trainer import ShardedTrainer


class ToldTrainer(ShardedTrainer):
    """Says at its end that it was sharded."""

    def gather_weights(self) -> dict[str, torch.Tensor] | None:
        assert self.is_sharded()
        print("the weights were sharded", flush=True)
        return super().gather_weights()


def run(words: list[str]) -> int:
    """Return the code that the command ends with, also where it leaves by itself."""
    try:
        return main(words)
    except SystemExit as stop:
        return int(stop.code or 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = sys.argv[1:]
    if words[0] == "slow":
        slow_steps()
        words = words[1:]
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        training.MethodTrainer = ToldTrainer  # type: ignore[misc]
    code = run(words)
    assert not dist.is_initialized()
    print(f"left the group with {code}", flush=True)
    sys.exit(code)

"""Which of two adapters leads: decided every few steps by their losses, and kept in every checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback

from mmalign.engine.logps import unwrap_parallel
from mmalign.files import read_json_object, write_whole
from mmalign.losses.doubles import widest_dtype
from mmalign.models.adapter_pair import ADAPTERS, FAST, AdapterName, compute_with, exchange_adapters

CHASE_FILE = "chase.json"


class Chase:
    """The roles. After every interval the adapter with the lower mean loss in it leads (OFS-DPO, Alg. 1, second hand)."""

    def __init__(self, steps: int) -> None:
        """Let the fast adapter lead for an interval of so many steps."""
        self.steps = steps
        self.leader: AdapterName = FAST
        self.sums = dict.fromkeys(ADAPTERS, 0.0)
        """Losses since the last decision."""
        self.num_changes = 0
        self._watched: list[Tensor] = []

    @property
    def chaser(self) -> AdapterName:
        """The adapter that does not lead."""
        return ADAPTERS[1 - ADAPTERS.index(self.leader)]

    def watch(self, *losses: Tensor) -> None:
        """Take note of a micro-batch's summed losses, scalars in the order of ``ADAPTERS``."""
        seen = torch.stack(losses).detach()
        self._watched.append(seen.to(widest_dtype(seen.device)))

    def step(self, number: int) -> None:
        """Count an optimiser step, and decide if it is time; ``number`` is that of the steps so far, from 1."""
        if self._watched:
            seen = torch.stack(self._watched).sum(0)
            self._watched = []
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(seen)
            for name, value in zip(ADAPTERS, seen.tolist(), strict=True):
                self.sums[name] += value
        if number % self.steps == 0:
            # Both saw the same pairs, so that their sums compare as their means do. A tie changes nothing.
            if self.sums[self.chaser] < self.sums[self.leader]:
                self.leader, self.num_changes = self.chaser, self.num_changes + 1
            self.sums = dict.fromkeys(ADAPTERS, 0.0)


class ChaseCallback(TrainerCallback):
    """Moves the roles on after each step, and leaves the leader in the first adapter's place at the end.

    Stands before ``ManifestCallback``, so that a checkpoint's manifest counts its file.
    """

    def __init__(self, chase: Chase, *, checkpoint: Path | None) -> None:
        """Take the roles, and the checkpoint that training resumes from."""
        self.chase, self.checkpoint = chase, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start with the fast adapter, or with the checkpoint's roles."""
        if self.checkpoint is not None:
            held = read_json_object(self.checkpoint / CHASE_FILE)
            self.chase.leader, self.chase.sums, self.chase.num_changes = held["leader"], held["sums"], held["num_changes"]

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Decide if it is time; what looks at the model between steps sees the leader."""
        self.chase.step(state.global_step)
        compute_with(_bare(model), self.chase.leader)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the roles into the checkpoint."""
        if state.is_world_process_zero:
            held = {"leader": self.chase.leader, "sums": self.chase.sums, "num_changes": self.chase.num_changes}
            write_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}" / CHASE_FILE, json.dumps(held))

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Put the leader where it is saved and loaded as the one adapter, and say who it is."""
        policy = _bare(model)
        if self.chase.leader != FAST:
            exchange_adapters(policy)
        compute_with(policy, FAST)
        if state.is_world_process_zero:
            who = "fast" if self.chase.leader == FAST else "slow"
            print(f"the {who} adapter leads after {self.chase.num_changes:,} changes; the other one is in the folder slow")


def _bare(model: nn.Module) -> PeftModel:
    policy = unwrap_parallel(model)
    assert isinstance(policy, PeftModel), type(policy)
    return policy

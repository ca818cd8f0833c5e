"""A reference that follows the policy: its own weights of before, exchanged for the policy's while the reference runs.

DPO with one is TR-DPO (arXiv:2404.09656); the averaged and the triggered form are ADPO's (arXiv:2510.18913).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmalign.errors import UserError
from mmalign.models.eval_mode import eval_mode
from mmalign.models.references import Reference
from mmalign.options.training import ReferenceUpdate


class MovingReference(Reference):
    """What trains is kept twice, an adapter alone where there is one; what is frozen is shared with the policy."""

    def __init__(self, policy: nn.Module, update: ReferenceUpdate) -> None:
        """Start at the policy.

        Args:
            policy: The model that will be trained, before any step.
            update: When the reference moves, and how far.

        Raises:
            ValueError: If weights in half precision are to be averaged: they would not move at all.
        """
        self.shares_frozen_vision = True
        self._model = None
        self.update = update
        self.anchor = {name: weight.detach().clone() for name, weight in policy.named_parameters() if weight.requires_grad}
        self.num_updates = 0
        self._gap: Tensor | None = None
        half = next((weight.dtype for weight in self.anchor.values() if weight.dtype.itemsize < 4), None)
        if update.kind == "ema" and half is not None:
            raise UserError(
                f"--reference-update {update} averages weights, and these are {half}: take --dtype float32 --precision bfloat16"
            )

    @contextmanager
    def active(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Yield the policy with the reference's weights; ``policy`` is the bare model in training, outside DDP."""
        with torch.no_grad(), eval_mode(policy):
            self._exchange(policy)
            try:
                yield policy
            finally:
                self._exchange(policy)

    def _exchange(self, policy: nn.Module) -> None:
        for name, weight in policy.named_parameters():
            if name in self.anchor:
                weight.data, self.anchor[name] = self.anchor[name].to(weight.device), weight.data
        # Autocast keeps the weights that it has cast until its context ends, and both models run inside one.
        torch.clear_autocast_cache()

    def watch(self, policy_logps: Tensor, reference_logps: Tensor) -> None:
        """Take note of the log-probabilities of a micro-batch's tokens, (K,) each, where the update depends on them."""
        if self.update.kind == "kl":
            difference = (policy_logps - reference_logps).detach()
            gap = torch.stack([difference.sum(), torch.ones_like(difference).sum()])
            self._gap = gap if self._gap is None else self._gap + gap

    @torch.no_grad()
    def step(self, policy: nn.Module, number: int) -> None:
        """Move after an optimiser step, if it is time.

        Args:
            policy: The bare model.
            number: Steps so far, from 1.
        """
        if self.update.kind == "ema":
            self._average(policy, keep=self.update.value)
        elif self.update.kind == "every":
            if number % int(self.update.value) == 0:
                self._average(policy, keep=0.0)
        elif self._mean_gap() > self.update.value:
            self._average(policy, keep=0.0)

    def _mean_gap(self) -> float:
        """Mean of log pi - log ref over the step's tokens, of all processes."""
        if self._gap is None:
            return 0.0
        gap, self._gap = self._gap, None
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(gap)
        return float(gap[0] / gap[1].clamp(min=1))

    def _average(self, policy: nn.Module, *, keep: float) -> None:
        for name, weight in policy.named_parameters():
            if name in self.anchor:
                self.anchor[name] = self.anchor[name].to(weight.device).mul_(keep).add_(weight, alpha=1 - keep)
        self.num_updates += 1

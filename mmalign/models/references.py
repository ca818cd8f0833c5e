"""The frozen model that preference training is held to: adapter off, or a frozen copy or other model.

The third kind, cached log-probabilities, is no model: they are columns of the data (see ``methods/cached_reference.py``).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from peft import PeftModel
from torch import nn

from mmalign.errors import UserError
from mmalign.models.eval_mode import eval_mode

ReferenceKind = Literal["adapter-off", "copy"]


class Reference:
    """Gives the reference model for one forward pass, without gradient and in eval mode."""

    def __init__(self, policy: nn.Module, *, kind: ReferenceKind, model: nn.Module | None = None) -> None:
        """Prepare the reference of ``policy``.

        Args:
            policy: The model that will be trained, before any step.
            kind: ``adapter-off`` or ``copy``.
            model: Another model as the reference (a teacher), instead of a copy.

        Raises:
            ValueError: If an adapter-off reference would not be frozen: the policy has no adapter, or weights outside it train that
                are no copies which go off with it.
        """
        self.shares_frozen_vision = model is None
        if kind == "adapter-off":
            _check_only_adapters_train(policy)
            self._model = None
        else:
            self._model = (copy.deepcopy(policy) if model is None else model).eval().requires_grad_(False)

    shares_frozen_vision: bool
    """Whether its vision tower is the policy's own or a copy: where that is frozen, one encoding of an image serves both."""

    @property
    def model(self) -> nn.Module | None:
        """The separate reference model; None where the policy itself serves with its adapter off."""
        return self._model

    @contextmanager
    def active(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Yield the model to run; ``policy`` is the bare model in training, outside DDP."""
        with torch.no_grad():
            if self._model is not None:
                device = next(policy.parameters()).device
                if next(self._model.parameters()).device != device:
                    # It was made before the trainer moved the policy to its accelerator.
                    self._model.to(device)
                yield self._model
                return
            assert isinstance(policy, PeftModel), type(policy)
            with eval_mode(policy), policy.disable_adapter():
                yield policy


def _check_only_adapters_train(policy: nn.Module) -> None:
    """A weight that trains outside the adapter is not switched off with it, and the reference would drift."""
    if not isinstance(policy, PeftModel):
        raise UserError("reference 'adapter-off' needs a policy with a LoRA adapter; set --lora-rank, or use 'copy' or 'cached'")
    leaking = [name for name, p in policy.named_parameters() if p.requires_grad and not _is_adapter(name, policy)]
    if leaking:
        raise UserError(
            f"{leaking[0]} and {len(leaking) - 1} more weights train outside the adapter, so a reference with the adapter off "
            "would move with them; freeze them, or use reference 'copy' or 'cached'"
        )


def _is_adapter(name: str, policy: PeftModel) -> bool:
    # PEFT names an adapter's weights "...<prefix>_X.<adapter>.weight"; modules_to_save are copies that go with the adapter.
    return policy.base_model.prefix in name or "modules_to_save." in name

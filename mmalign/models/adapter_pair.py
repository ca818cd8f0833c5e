"""Two LoRA adapters on one frozen base, which train at once: one computes at a time."""

import copy
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from torch import nn

AdapterName = Literal["default", "slow"]
FAST: AdapterName = "default"
"""PEFT's first: saved in the folder itself, and loaded from there."""
SLOW: AdapterName = "slow"
"""Saved in the folder's own folder of that name."""
ADAPTERS = (FAST, SLOW)


@torch.no_grad()
def add_slow_adapter(policy: PeftModel) -> None:
    """Put a copy of the one adapter beside it, and let both train."""
    policy.add_adapter(SLOW, copy.deepcopy(policy.peft_config[FAST]))
    for fast, slow in _pairs(policy):
        slow.copy_(fast)
    compute_with(policy, FAST)


def compute_with(policy: PeftModel, name: AdapterName) -> None:
    """Compute with one adapter from here on. Both keep training, where PEFT stops the other."""
    policy.set_adapter(name)
    policy.set_requires_grad(ADAPTERS)


def exchange_adapters(policy: PeftModel) -> None:
    """Let the adapters' weights change places."""
    for fast, slow in _pairs(policy):
        fast.data, slow.data = slow.data, fast.data


def adapter_parameters(policy: PeftModel, name: AdapterName) -> list[nn.Parameter]:
    """An adapter's weights, in the model's order."""
    return [weight for path, weight in policy.named_parameters() if policy.base_model.prefix in path and f".{name}." in path]


def saved_folders(model: nn.Module, out: Path) -> list[Path]:
    """Where ``save_pretrained`` of a model writes weights: PEFT gives each adapter behind the first a folder of its own."""
    others = [name for name in model.peft_config if name != FAST] if isinstance(model, PeftModel) else []
    return [out, *(out / name for name in others)]


def _pairs(policy: PeftModel) -> list[tuple[nn.Parameter, nn.Parameter]]:
    return list(zip(*(adapter_parameters(policy, name) for name in ADAPTERS), strict=True))

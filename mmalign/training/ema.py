"""An exponential moving average of the weights: kept through resume, and what is saved at the end."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from mmalign.errors import UserError
from mmalign.files import whole

EMA_FILE = "ema.safetensors"


class EmaCallback(TrainerCallback):
    """After each step: average = decay * average + (1 - decay) * weights. Batch norms' running statistics are averaged too.

    Stands before ``ManifestCallback``, so that a checkpoint's manifest counts its file.
    """

    def __init__(self, decay: float, *, checkpoint: Path | None) -> None:
        """Take the decay, and the checkpoint that is gone on from.

        Raises:
            ValueError: If ``decay`` is out of range.
        """
        if not 0.0 < decay < 1.0:
            raise UserError(f"ema_decay is {decay}; expected a number between 0 and 1, such as 0.999")
        self.decay = decay
        self.checkpoint = checkpoint
        self.average: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Start at the weights, or at the checkpoint's average."""
        self.average = {name: value.detach().clone() for name, value in _inner(model).state_dict().items()}
        if self.checkpoint is not None:
            saved = load_file(self.checkpoint / EMA_FILE)
            self.average = {name: saved[name].to(value.device) for name, value in self.average.items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Move the average."""
        for name, value in _inner(model).state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - self.decay)
            else:
                self.average[name].copy_(value)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the average into the checkpoint."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with whole(folder / EMA_FILE) as partial:
                save_file({name: value.cpu().contiguous() for name, value in self.average.items()}, partial)

    def apply(self, model: nn.Module) -> None:
        """Put the average into the model."""
        _inner(model).load_state_dict(self.average)


def _inner(model: nn.Module) -> nn.Module:
    return model.module if hasattr(model, "module") and isinstance(model.module, nn.Module) else model

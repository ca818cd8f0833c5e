"""An exponential moving average of the weights: kept through resume, and what is saved at the end."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback

from mmalign.engine.logps import unwrap_parallel
from mmalign.errors import UserError
from mmalign.files import whole

EMA_FILE = "ema.safetensors"


class EmaCallback(TrainerCallback):
    """After each step: average = decay * average + (1 - decay) * weights. Batch norms' running statistics are averaged too.

    Stands before ``ManifestCallback``, so that a checkpoint's manifest counts its file.
    """

    average: ModelEmaV3

    def __init__(self, decay: float, *, checkpoint: Path | None) -> None:
        """Take the decay, and the checkpoint that training resumes from.

        Raises:
            ValueError: If ``decay`` is out of range.
        """
        if not 0.0 < decay < 1.0:
            raise UserError(f"ema_decay is {decay}; expected a number between 0 and 1, such as 0.999")
        self.decay = decay
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Start at the weights, or at the checkpoint's average."""
        self.average = ModelEmaV3(unwrap_parallel(model), decay=self.decay)
        if self.checkpoint is not None:
            self.average.module.load_state_dict(load_file(self.checkpoint / EMA_FILE))

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Move the average."""
        self.average.update(unwrap_parallel(model))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the average into the checkpoint."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with whole(folder / EMA_FILE) as partial:
                save_file({name: value.cpu().contiguous() for name, value in self.average.module.state_dict().items()}, partial)

    def apply(self, model: nn.Module) -> None:
        """Put the average into the model."""
        unwrap_parallel(model).load_state_dict(self.average.module.state_dict())

"""The reference that moves during training: when it does, and its weights in every checkpoint."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from mmalign.engine.logps import unwrap_parallel
from mmalign.files import whole
from mmalign.models.moving_reference import MovingReference

ANCHOR_FILE = "reference.safetensors"


class MovingReferenceCallback(TrainerCallback):
    """Moves the reference after each optimiser step.

    Stands before ``ManifestCallback``, so that a checkpoint's manifest counts its file.
    """

    def __init__(self, reference: MovingReference, *, checkpoint: Path | None) -> None:
        """Take the reference, and the checkpoint that training resumes from."""
        self.reference, self.checkpoint = reference, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start at the model, or at the checkpoint's reference."""
        if self.checkpoint is not None:
            self.reference.anchor = load_file(self.checkpoint / ANCHOR_FILE)

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Move it if it is time."""
        self.reference.step(unwrap_parallel(model), state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write its weights into the checkpoint."""
        if state.is_world_process_zero:
            with whole(Path(args.output_dir) / f"checkpoint-{state.global_step}" / ANCHOR_FILE) as partial:
                save_file({name: value.cpu().contiguous() for name, value in self.reference.anchor.items()}, partial)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say how often it moved since this command was given."""
        if state.is_world_process_zero:
            print(f"the reference moved {self.reference.num_updates:,} times")

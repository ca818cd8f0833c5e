"""Train to the end, from the start or from a checkpoint: what every training command does with its trainer."""

import pickle
from pathlib import Path

from mmalign.data.workers import lost_workers
from mmalign.errors import UserError
from mmalign.training.checkpoints import find_checkpoint
from mmalign.training.termination import EXIT_CODE, TerminationCallback
from mmalign.training.trainer import MethodTrainer


def choose_checkpoint(checkpoints: Path) -> Path | None:
    """Return the newest whole checkpoint, and print which ones are passed over and why."""
    checkpoint, passed_over = find_checkpoint(checkpoints)
    for line in passed_over:
        print(f"skipping {line}")
    return checkpoint


def train_to_end(trainer: MethodTrainer, checkpoint: Path | None) -> None:
    """Train from a checkpoint, or from the start; SIGTERM saves and leaves.

    Raises:
        ValueError: If the checkpoint holds more than numbers, or a package is missing that a field of ``trainer`` needs.
        ChildProcessError: If a process that loads data died.
        SystemExit: With ``EXIT_CODE`` after SIGTERM.
    """
    if checkpoint is not None:
        print(f"resuming from {checkpoint}")
    termination = TerminationCallback()
    trainer.add_callback(termination)
    workers = trainer.args.dataloader_num_workers
    try:
        with (
            termination.listening(),
            lost_workers("loads data", count=workers, option="--num-workers", then="it resumes from the last checkpoint"),
        ):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except pickle.UnpicklingError as error:
        # They are read with weights_only, which refuses what could run code.
        raise UserError(f"{checkpoint} holds more than numbers and is not a checkpoint that mmalign wrote; remove it: {error}") from error
    except ImportError as error:
        # A field of trainer asks for it, such as use_liger_kernel.
        raise UserError(f"a package is missing: {error}") from error
    if termination.stopped:
        # A launcher ends all processes when one has left, and the main one may still be at the manifest.
        trainer.accelerator.wait_for_everyone()
        print(f"stopped by SIGTERM at step {trainer.state.global_step}, which is saved; the same command resumes from there", flush=True)
        raise SystemExit(EXIT_CODE)

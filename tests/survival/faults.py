"""Faults that a command's process puts into itself before it begins; functions of a module, so that another process finds them."""

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import torch

from mmalign.methods.sft import SupervisedMethod
from mmalign.training import checkpoints
from mmalign.training.trainer import MethodTrainer


def slow_steps() -> None:
    """A third of a second a step, so that a signal comes in one."""
    original = MethodTrainer.training_step

    def training_step(self: MethodTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        time.sleep(0.3)
        return original(self, *args, **kwargs)

    MethodTrainer.training_step = training_step  # type: ignore[method-assign]


def limit_files(size: int) -> None:
    """No file may grow above this size, as on a disk that is full: writing on fails in the middle."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def die_before_the_manifest_of_step_6() -> None:
    """Killed between the save of a checkpoint and its manifest."""
    original = checkpoints.write_manifest

    def write_manifest(folder: Path) -> None:
        if folder.name == "checkpoint-6":
            os.kill(os.getpid(), signal.SIGKILL)
        original(folder)

    checkpoints.write_manifest = write_manifest


def kill_worker() -> None:
    """A process that loads data dies at its fourth batch."""
    original, calls = SupervisedMethod.collate, []

    def collate(self: SupervisedMethod, rows: Any) -> dict[str, Any]:
        calls.append(len(rows))
        if len(calls) > 3 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, rows)

    SupervisedMethod.collate = collate  # type: ignore[method-assign]


def put_nan_in_a_batch() -> None:
    """The sixth batch has a pixel that is no number."""
    original, calls = SupervisedMethod.collate, []

    def collate(self: SupervisedMethod, rows: Any) -> dict[str, Any]:
        batch = original(self, rows)
        calls.append(len(rows))
        if len(calls) == 6:
            batch["images"]["pixel_values"][0, 0, 0, 0] = float("nan")
        return batch

    SupervisedMethod.collate = collate  # type: ignore[method-assign]

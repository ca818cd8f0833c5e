"""Evaluation of the model in training every so many steps: from memory, and without a trace in the training."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainerCallback

from mmalign.models.eval_mode import eval_mode

Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""From the model and the step to what is logged."""


class EvaluationCallback(TrainerCallback):
    """Evaluates on the main process every ``every`` steps and after the last; the other processes wait.

    A step is evaluated before its checkpoint is saved, so that the checkpoint's log has the values and a resumed run the same log.
    """

    def __init__(self, evaluate: Evaluate, *, every: int, log: Callable[[dict[str, float]], None]) -> None:
        """Take what evaluates, and the trainer's ``log``."""
        self.evaluate = evaluate
        self.every = every
        self.log = log

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Evaluate where it is time."""
        if state.global_step % self.every and not control.should_training_stop:
            return
        if state.is_world_process_zero:
            with left_as_found(model):
                metrics = self.evaluate(model, state.global_step)
            # A log strikes out the wish for one, and the step's loss has still to be logged.
            wanted = control.should_log
            self.log(dict(metrics))
            control.should_log = wanted
        PartialState().wait_for_everyone()


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and afterwards each module in the mode and each random generator in the state that it had."""
    states = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    forked: dict[str, Any] = {"devices": []} if device.type == "cpu" else {"devices": [device], "device_type": device.type}
    try:
        with torch.random.fork_rng(**forked), eval_mode(model):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

"""A stop that was asked for: SIGTERM saves a checkpoint at the end of the step and leaves."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

EXIT_CODE = 128 + signal.SIGTERM
"""143, what a shell reports of a process that SIGTERM ended: schedulers know it."""

REPEAT_SECONDS = 10.0
"""Signals within this time are one request: schedulers signal every process of a job, and the launcher passes its own on."""


class TerminationCallback(TrainerCallback):
    """Saves and stops at the end of the step in which a stop was asked for, on any of the processes.

    It is added last: other callbacks take the stop that it asks for as the end of training.

    Attributes:
        asked: Whether this process was asked.
        stopped: Whether training ended before its last step because of it.
    """

    def __init__(self) -> None:
        """Begin unasked."""
        self.asked = False
        self.stopped = False
        self._asked_at = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where any process was asked to: all save the same step."""
        # After the last step everything is saved anyway, and the run ends as whole.
        if self._any_asked() and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def _any_asked(self) -> bool:
        state = PartialState()
        if state.num_processes == 1:
            return self.asked
        flag = torch.tensor(float(self.asked), device=state.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM for a request to stop.

        One that comes more than ``REPEAT_SECONDS`` after the first ends the process at once, as it does everywhere else.
        """
        if threading.current_thread() is not threading.main_thread():
            # Only the main thread may set a handler; who trains in another one stops it by other means.
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if not self.asked:
                self.asked, self._asked_at = True, time.monotonic()
            elif time.monotonic() - self._asked_at > REPEAT_SECONDS:
                signal.signal(signal.SIGTERM, before)
                signal.raise_signal(signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

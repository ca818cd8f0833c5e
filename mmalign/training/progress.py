"""What a run says on the terminal while it trains: a line per log, and on a terminal a bar between the lines."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

# In this order, where a method logs them; losses are terms of the loss, and shown where there is more than one.
_SHOWN = ("online/reward", "rewards/margin", "rewards/accuracy", "dual_head/label_accuracy")
_RATES = (("gradient", "grad_norm"), ("lr", "learning_rate"), ("projector lr", "projector_learning_rate"))
_MAX_TERMS = 4
_EVAL = "eval/"


def show_progress(trainer: Trainer) -> None:
    """Print a trainer's logs as lines, in place of its own printing of them; what it saves stays as it is."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogLines(bar=not trainer.args.disable_tqdm))


class LogLines(TrainerCallback):
    """Prints on the main process."""

    def __init__(self, *, bar: bool) -> None:
        """Show a bar between the lines, where the output is a terminal."""
        self.has_bar = bar and sys.stderr.isatty()
        self.bar = tqdm(disable=True)
        self.start, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; a resumed run has its first steps behind it."""
        self.start, self.first_step = time.monotonic(), state.global_step
        shown = self.has_bar and state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, disable=not shown, leave=False, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **kwargs: Any) -> None:
        """Print what was logged."""
        if not state.is_world_process_zero:
            return
        passed = time.monotonic() - self.start
        steps = state.global_step - self.first_step
        left = passed / steps * (state.max_steps - state.global_step) if steps else None
        for line in format_log(logs, step=state.global_step, max_steps=state.max_steps, passed=passed, left=left):
            tqdm.write(line)
        sys.stdout.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        self.bar.close()


def format_log(logs: Mapping[str, Any], *, step: int, max_steps: int, passed: float, left: float | None) -> list[str]:
    """Write a log as lines: one of a step, one for each benchmark that was scored, one at the end.

    Args:
        logs: What was logged.
        step: Number of the step.
        max_steps: Number of the last one.
        passed: Seconds since the training began.
        left: Seconds that it will take; None where that isn't known yet.
    """
    if "train_runtime" in logs:
        return [f"trained to step {step:,} in {_clock(passed)}"]
    head = f"step {step:>{len(f'{max_steps:,}')},}/{max_steps:,}"
    lines = [f"{head}  {name}: {_join(metrics)}" for name, metrics in _by_benchmark(logs).items()]
    if "loss" in logs:
        clock = "" if left is None else f"  {_clock(left)} left"
        lines.append(f"{head}  {_join(_chosen(logs))}{clock}")
    return lines


def _chosen(logs: Mapping[str, Any]) -> dict[str, float]:
    terms = {key: float(value) for key, value in logs.items() if key.startswith("loss/")}
    shown = {"loss": float(logs["loss"])}
    shown |= {_name(key): value for key, value in list(terms.items())[:_MAX_TERMS]} if len(terms) > 1 else {}
    shown |= {_name(key): float(logs[key]) for key in _SHOWN if key in logs}
    shown |= {name: float(logs[key]) for name, key in _RATES if key in logs}
    return shown


def _by_benchmark(logs: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of the whole of each benchmark; those of its groups are in the log file."""
    found: dict[str, dict[str, float]] = {}
    for key, value in logs.items():
        benchmark, *names = key.removeprefix(_EVAL).split("/")
        if key.startswith(_EVAL) and len(names) == 1:
            found.setdefault(benchmark, {})[names[0].replace("_", " ")] = float(value)
    return found


def _name(key: str) -> str:
    return key.partition("/")[2].replace("_", " ")


def _join(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _clock(seconds: float) -> str:
    """Hours, minutes, seconds."""
    return str(timedelta(seconds=round(seconds)))

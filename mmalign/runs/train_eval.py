"""Benchmarks of the model in training: ``mmalign train ... --eval-benchmarks pope chair --eval-data DIR``."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mmalign.errors import UserError
from mmalign.options.training import MllmOptions
from mmalign.reports.metric_names import is_baseline
from mmalign.runs.benchmark_plan import Planned, plan_benchmark, read_settings
from mmalign.runs.evaluate import Loaded, evaluate
from mmalign.training.evaluating import Evaluate


def build_evaluation(options: MllmOptions, processor: Any) -> Evaluate | None:
    """Read the benchmarks that are to be scored during training; None where there are none.

    What is missing is found here, before the first step.

    Raises:
        ValueError: If options don't fit together, or a benchmark's data, images or judge are missing.
    """
    names = options.eval_benchmarks
    unused = [name for name in options.eval_options if name not in names]
    if unused or (options.eval_data and not names):
        raise UserError(f"--eval-benchmarks is {' '.join(names) or 'empty'}; name there what --eval-data and --eval-options are for")
    if not names:
        return None
    if options.eval_every < 1:
        raise UserError(f"--eval-every is {options.eval_every}; expected 1 step or more")
    if len(set(names)) != len(names) or len(options.eval_data) not in (1, len(names)):
        raise UserError(
            f"--eval-benchmarks names {' '.join(names)} and --eval-data {len(options.eval_data)} folders; "
            "expected each benchmark once, and one folder for all or one for each"
        )
    folders = options.eval_data * len(names) if len(options.eval_data) == 1 else options.eval_data
    chosen = {name: read_settings(options.eval_options.get(name, {}), where=f"eval_options.{name}") for name in names}
    planned = [plan_benchmark(name, folder, chosen[name]) for name, folder in zip(names, folders, strict=True)]
    return partial(_evaluate, planned=planned, processor=processor, out=options.out)


def _evaluate(model: nn.Module, step: int, *, planned: Sequence[Planned], processor: Any, out: Path) -> Mapping[str, float]:
    """Answer and score in OUT/eval/step-N; constant answers stay in the files, a log of them says nothing."""
    folder = out / "eval" / f"step-{step}"
    metrics: dict[str, float] = {}
    for wanted, benchmark in planned:
        # Half the answers of a run that was killed here: of the same weights if all went well, and nothing says so.
        (folder / f"{wanted.benchmark}_answers.jsonl.partial").unlink(missing_ok=True)
        wanted = dataclasses.replace(wanted, model=f"{out}, step {step}", out=folder)
        result = evaluate(wanted, loaded=Loaded(model, processor, source=str(wanted.model)), benchmark=benchmark)
        metrics |= {f"eval/{key}": value for key, value in result.metrics.items() if not is_baseline(key)}
    return metrics

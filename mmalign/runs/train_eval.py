"""Benchmarks of the model in training: ``mmalign train ... --eval-benchmarks pope chair --eval-data DIR``."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from mmalign.data.images import load_image
from mmalign.errors import UserError
from mmalign.evaluation.items import items_path, read_items
from mmalign.evaluation.runner import find_unfinished
from mmalign.options.training import MllmOptions
from mmalign.reports.metric_names import is_baseline
from mmalign.runs.answering import Loaded, answer_and_score
from mmalign.runs.benchmark_plan import Planned, plan_benchmark, read_settings
from mmalign.runs.evaluate import image_folder
from mmalign.training.tracking import Sample, small

NUM_SAMPLES = 8
"""Answers that trackers are shown of each benchmark, the same questions at every step."""


@dataclasses.dataclass(frozen=True)
class TrainingEvaluation:
    """Scores the model in training, and keeps its answers in OUT/eval/step-N."""

    planned: Sequence[Planned]
    processor: Any
    out: Path

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Answer and score; constant answers stay in the files, a log of them says nothing."""
        folder = self._folder(step)
        metrics: dict[str, float] = {}
        for wanted, benchmark in self.planned:
            # Half the answers of a run that was killed here: of the same weights if all went well, and nothing says so.
            find_unfinished(folder / f"{wanted.benchmark}_answers.jsonl").unlink(missing_ok=True)
            wanted = dataclasses.replace(wanted, model=f"{self.out}, step {step}", out=folder)
            result = answer_and_score(wanted, benchmark, loaded=Loaded(model, self.processor, source=str(wanted.model)))
            metrics |= {f"eval/{key}": value for key, value in result.metrics.items() if not is_baseline(key)}
        return metrics

    def samples(self, name: str, step: int) -> list[Sample]:
        """Read some answers to a benchmark at a step that was scored, evenly spaced; an image that isn't a file is left out."""
        wanted, benchmark = next(one for one in self.planned if one.options.benchmark == name)
        items = read_items(items_path(self._folder(step), name))
        root = self._folder(step) / "images" if benchmark.holds_images and wanted.images is None else image_folder(wanted, benchmark)
        shown = items[:: max(1, len(items) // NUM_SAMPLES)][:NUM_SAMPLES]
        return [Sample(_read_image(root, item.image), item.question, item.response, item.label, item.correct) for item in shown]

    def _folder(self, step: int) -> Path:
        return self.out / "eval" / f"step-{step}"


def _read_image(root: Path, name: str | None) -> Image.Image | None:
    return small(load_image(name, root=root)) if name is not None and (root / name).is_file() else None


def build_evaluation(options: MllmOptions, processor: Any) -> TrainingEvaluation | None:
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
    return TrainingEvaluation(planned, processor, options.out)

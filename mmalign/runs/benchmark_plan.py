"""Benchmarks that a model will be asked, by name: their options checked and their data read before anything is loaded or trained."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.config import coerce
from mmalign.errors import UserError
from mmalign.evaluation.benchmark import Benchmark
from mmalign.options.evaluate import EvaluateOptions
from mmalign.runs.answering import check_can_answer
from mmalign.runs.evaluate import image_folder, load_benchmark

# What the command itself says.
_NOT_TO_CHOOSE = ("benchmark", "data", "model", "answers", "out", "json", "dtype", "quantization")


class Planned(NamedTuple):
    """How a benchmark is asked and scored, and its data."""

    options: EvaluateOptions
    benchmark: Benchmark


def plan_benchmark(name: str, data: Path, settings: Mapping[str, Any], *, images: Path | None = None) -> Planned:
    """Read a benchmark, and look for what can be missing when a model is asked.

    Args:
        name: Of the benchmark.
        data: Its files.
        settings: Other options of ``mmalign evaluate``.
        images: Folder of the images where it has none of its own; it need not be there.

    Raises:
        ValueError: If data, images or a judge are missing.
    """
    wanted = EvaluateOptions(benchmark=name, data=data, **settings)
    benchmark = load_benchmark(wanted)
    own = wanted.images is not None or benchmark.holds_images or image_folder(wanted, benchmark).is_dir()
    if not own and images is not None and images.is_dir():
        wanted = dataclasses.replace(wanted, images=images)
    check_can_answer(wanted, benchmark)
    return Planned(wanted, benchmark)


def read_settings(given: Any, *, where: str) -> dict[str, Any]:
    """Check options of ``mmalign evaluate`` that a mapping holds for one benchmark; ``where`` names it.

    Raises:
        ValueError: If there is no such option, or its value is of another type.
    """
    hints = typing.get_type_hints(EvaluateOptions)
    names = [field.name for field in dataclasses.fields(EvaluateOptions)]
    known = [name for name in names if name not in _NOT_TO_CHOOSE and not name.startswith("endpoint")]
    values = {str(key).replace("-", "_"): value for key, value in coerce(given, dict[str, Any], name=where).items()}
    for key in values:
        if key not in known:
            raise UserError(f"{where} has no option {key!r}; known: {', '.join(known)}")
    return {key: coerce(value, hints[key], name=f"{where}.{key}") for key, value in values.items()}

"""The class of a benchmark by its name; ``options/evaluate.py`` lists the names."""

from importlib import import_module

from mmalign.errors import UserError
from mmalign.evaluation.benchmark import Benchmark
from mmalign.options.evaluate import BENCHMARKS


def find_benchmark(name: str) -> type[Benchmark]:
    """Import a benchmark's class.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in BENCHMARKS:
        raise UserError(f"there is no benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}")
    module, _, attribute = BENCHMARKS[name].partition(":")
    found: type[Benchmark] = getattr(import_module(f"mmalign.evaluation.{module}"), attribute)
    return found

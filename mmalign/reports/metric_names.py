"""What a metric's key says: the benchmark that it is of, what it is called there, and which way is better."""

from mmalign.evaluation.benchmark import Benchmark
from mmalign.evaluation.metrics import MetricInfo
from mmalign.evaluation.registry import find_benchmark
from mmalign.options.evaluate import BENCHMARKS

PREFIXES = {name.replace("-", "_"): name for name in BENCHMARKS}
"""How a benchmark's metrics' keys begin -> its name."""


def find_owner(prefix: str) -> type[Benchmark] | None:
    """Return the benchmark whose metrics' keys begin so; None where none is known."""
    return find_benchmark(PREFIXES[prefix]) if prefix in PREFIXES else None


def describe_metric(key: str) -> MetricInfo:
    """Return how ``<benchmark>/[<group>/...]<name>`` is shown; the groups stand before the label.

    A metric that is not known is shown as the number it is, with no direction.
    """
    prefix, *groups, name = key.split("/")
    owner = find_owner(prefix)
    known: MetricInfo | None = None if owner is None else owner.metrics.get(name)
    info = known or MetricInfo(name.replace("_", " ").capitalize())
    if not groups:
        return info
    group = ", ".join(groups).replace("_", " ").replace("-", " ").capitalize()
    return MetricInfo(f"{group}: {info.label}", info.better, info.unit)


def is_baseline(key: str) -> bool:
    """Whether a metric is that of a constant answer, the same for every model."""
    return any(part.startswith("always_") for part in key.split("/")[1:])

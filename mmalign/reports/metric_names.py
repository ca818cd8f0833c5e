"""What the benchmarks' metrics are called, which way is better, and what they are measured in."""

from dataclasses import dataclass
from typing import Literal

from mmalign.reports.results_table import Better

Unit = Literal["share", "number"]

BENCHMARKS = {
    "pope": "POPE: is there a ...?",
    "chair": "CHAIR: describing the image",
    "amber": "AMBER",
    "mme": "MME: existence, count, position, colour",
    "hallusionbench": "HallusionBench",
    "mmhal": "MMHal-Bench",
    "object_halbench": "Object HalBench",
}


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is shown.

    Attributes:
        label: In words.
        better: Which way; None where neither is.
        unit: A share is shown in percent, a number as it is.
        drawn: Whether it has a bar, where it stands for the whole benchmark.
    """

    label: str
    better: Better | None = None
    unit: Unit = "number"
    drawn: bool = False


_BINARY = {
    "accuracy": MetricInfo("Accuracy", "higher", "share", drawn=True),
    "precision": MetricInfo("Precision", "higher", "share"),
    "recall": MetricInfo("Recall", "higher", "share"),
    "f1": MetricInfo("F1", "higher", "share", drawn=True),
    "yes_ratio": MetricInfo("Share of yes", None, "share", drawn=True),
    "unknown": MetricInfo("Answers neither yes nor no", "lower"),
}
METRICS: dict[str, dict[str, MetricInfo]] = {
    # Half of POPE's questions are rightly answered yes.
    "pope": _BINARY | {"yes_ratio": MetricInfo("Share of yes", "near_half", "share", drawn=True)},
    "chair": {
        "sentence": MetricInfo("Captions with an absent object", "lower", "share", drawn=True),
        "instance": MetricInfo("Absent among the named objects", "lower", "share", drawn=True),
        "recall": MetricInfo("Coverage: present objects named", "higher", "share", drawn=True),
        "mentions": MetricInfo("Objects named a caption"),
    },
}


def describe_metric(key: str) -> MetricInfo:
    """Return how ``<benchmark>/[<group>/...]<name>`` is shown; the groups stand before the label.

    A metric that is not known here is shown as the number it is, with no direction.
    """
    benchmark, *groups, name = key.split("/")
    info = METRICS.get(benchmark, {}).get(name, MetricInfo(name.replace("_", " ").capitalize()))
    if not groups:
        return info
    group = ", ".join(groups).replace("_", " ").replace("-", " ").capitalize()
    return MetricInfo(f"{group}: {info.label}", info.better, info.unit)


def is_baseline(key: str) -> bool:
    """Whether a metric is that of a constant answer, the same for every model."""
    return any(part.startswith("always_") for part in key.split("/")[1:])

"""What the benchmarks' metrics are called, which way is better, and what they are measured in."""

from dataclasses import dataclass
from typing import Literal

from mmalign.reports.results_table import Better

Unit = Literal["share", "percent", "number"]

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
        unit: A share of one is shown in percent; what the original script gives in percent already, and a number, as they are.
        drawn: Whether it has a bar, where it stands for the whole benchmark.
    """

    label: str
    better: Better | None = None
    unit: Unit = "number"
    drawn: bool = False


def _share(label: str, better: Better | None, *, drawn: bool = False) -> MetricInfo:
    return MetricInfo(label, better, "share", drawn)


def _percent(label: str, better: Better | None, *, drawn: bool = False) -> MetricInfo:
    return MetricInfo(label, better, "percent", drawn)


_UNKNOWN = MetricInfo("Answers neither yes nor no", "lower")
# By the last part of the key.
METRICS: dict[str, dict[str, MetricInfo]] = {
    "pope": {
        "accuracy": _share("Accuracy", "higher", drawn=True),
        "precision": _share("Precision", "higher"),
        "recall": _share("Recall", "higher"),
        "f1": _share("F1", "higher", drawn=True),
        # Half of the questions are rightly answered yes.
        "yes_ratio": _share("Share of yes", "near_half", drawn=True),
        "unknown": _UNKNOWN,
    },
    "chair": {
        "sentence": _share("Captions with an absent object", "lower", drawn=True),
        "instance": _share("Absent among the named objects", "lower", drawn=True),
        "recall": _share("Coverage: present objects named", "higher", drawn=True),
        "mentions": MetricInfo("Objects named a caption"),
    },
    "amber": {
        "chair": _percent("CHAIR: absent among the named objects", "lower", drawn=True),
        "cover": _percent("Cover: present objects named", "higher", drawn=True),
        "hal": _percent("Hal: descriptions with an absent object", "lower", drawn=True),
        "cog": _percent("Cog: absent objects that people imagine too", "lower", drawn=True),
        "accuracy": _percent("Accuracy", "higher", drawn=True),
        "precision": _percent("Precision of no", "higher"),
        "recall": _percent("Recall of no", "higher"),
        "f1": _percent("F1 of no", "higher", drawn=True),
        "yes_ratio": _percent("Share of yes", None),
        "score": _percent("AMBER score", "higher", drawn=True),
        "unknown": _UNKNOWN,
    },
    "mme": {
        "total": MetricInfo("Total", "higher", "number", drawn=True),
        **{name: MetricInfo(name.capitalize(), "higher", "number") for name in ("existence", "count", "position", "color")},
        "accuracy": _percent("Accuracy", "higher"),
        "accuracy_plus": _percent("Both questions of an image right", "higher"),
        "unknown": _UNKNOWN,
    },
    "hallusionbench": {
        "aacc": _percent("Questions right (aAcc)", "higher", drawn=True),
        "qacc": _percent("Question pairs all right (qAcc)", "higher", drawn=True),
        "facc": _percent("Figures all right (fAcc)", "higher", drawn=True),
        "easy": _percent("Pairs on the image as it is, all right", "higher"),
        "hard": _percent("Pairs on an edited image, all right", "higher"),
        "unclear": MetricInfo("Answers that are unclear", "lower"),
    },
    "mmhal": {
        "score": MetricInfo("Rating by the judge, 0 to 6", "higher", "number", drawn=True),
        "hallucination_rate": _share("Hallucinating answers: rated below 3", "lower", drawn=True),
        "informativeness": _percent("Informativeness", "higher"),
        "unreadable": MetricInfo("Ratings that could not be read", "lower"),
    },
    "object_halbench": {
        "response": _share("Descriptions with an absent object, of those that name any", "lower", drawn=True),
        "mention": _share("Absent among the named objects", "lower", drawn=True),
        "sentence": _share("Descriptions with an absent object, of all", "lower"),
        "recall": _share("Coverage: present objects named", "higher", drawn=True),
        "average_length": MetricInfo("Words a description"),
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

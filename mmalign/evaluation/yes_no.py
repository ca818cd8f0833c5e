"""What the yes-or-no benchmarks share: the strict reading, binary metrics, and constant answers as baselines."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

Mode = Literal["official", "strict"]
# A model that looks at nothing: always-No has a higher F1 on AMBER than LLaVA-1.5, so no yes-or-no score stands alone.
BASELINES = {"always_yes": "Yes", "always_no": "No"}


def parse_strict(answer: str) -> bool | None:
    """Return the first whole word that is yes or no, in any case; None where there is neither."""
    found = re.search(r"\b(yes|no)\b", answer.lower())
    return None if found is None else found.group() == "yes"


def binary_metrics(labels: Sequence[bool], replies: Sequence[bool | None]) -> dict[str, float]:
    """Compute accuracy, precision, recall and F1 with yes as the positive class. 0 / 0 is 0.

    An unknown reply is wrong: it lowers accuracy, and recall where the label is yes.
    """
    pairs = list(zip(labels, replies, strict=True))
    true_positive = sum(label and reply is True for label, reply in pairs)
    false_positive = sum(not label and reply is True for label, reply in pairs)
    right = sum(label == reply for label, reply in pairs)
    precision = ratio(true_positive, true_positive + false_positive)
    recall = ratio(true_positive, sum(labels))
    return {
        "accuracy": ratio(right, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(sum(reply is True for _, reply in pairs), len(pairs)),
        "unknown": float(sum(reply is None for _, reply in pairs)),
    }


def score_baselines(
    score: Callable[[Mapping[str, str]], Mapping[str, float]], ids: Iterable[str], *, leave_out: tuple[str, ...] = ()
) -> dict[str, float]:
    """Score constant answers: ``pope/always_no/f1`` stands beside ``pope/f1``.

    Args:
        score: Scores answers by id.
        ids: The questions that were answered.
        leave_out: Last parts of the keys that say nothing of a constant answer.
    """
    ids = list(ids)
    metrics: dict[str, float] = {}
    for name, text in BASELINES.items():
        scores = score(dict.fromkeys(ids, text))
        metrics |= {key.replace("/", f"/{name}/", 1): value for key, value in scores.items() if key.split("/")[-1] not in leave_out}
    return metrics


def ratio(numerator: float, denominator: float) -> float:
    """Divide, where nothing of nothing is 0."""
    return numerator / denominator if denominator else 0.0

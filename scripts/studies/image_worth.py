"""How much an answer's log-probability owes to its image: on held-out rows with another image, for which the answer is false."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmalign.data.caches import LOGPS, cell_logps

MEASURED = ("mdpo", "symmpo")
"""Objectives for ``cache-logps``, whose cells are the chosen answer given the weakened and the other image."""
_COLUMNS = {
    "own": LOGPS[0],
    "other": cell_logps(("other", "chosen")),
    "weakened": cell_logps(("weakened", "chosen")),
    "rejected": LOGPS[1],
}


def image_metrics(policy: Mapping[str, Any], start: Mapping[str, Any], *, groups: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Measure how much the chosen answer's log-probability owes to its own image, in nats, and on what share of the rows in percent.

    Args:
        policy: Columns of the held-out rows, the policy's log-probabilities among them.
        start: The same rows with those of the model that it started from.
        groups: Name -> which rows, (rows,) booleans.

    Returns:
        ``own - other`` and ``own - weakened`` of log-probabilities, ``h own - other`` and ``h own - weakened`` of log-ratios with the
        start, each with the share above 0; log-ratios of both answers given the own image; ``own - other`` of each group.
    """
    said, before = ({key: np.asarray(rows[name]) for key, name in _COLUMNS.items()} for rows in (policy, start))
    ratios = {key: said[key] - before[key] for key in _COLUMNS}
    metrics: dict[str, float] = {}
    for prefix, values in (("", said), ("h ", ratios)):
        for under in ("other", "weakened"):
            metrics |= _above_zero(f"{prefix}own - {under}", values["own"] - values[under])
    metrics |= {"h chosen": float(ratios["own"].mean()), "h rejected": float(ratios["rejected"].mean())}
    for name, those in groups.items():
        metrics |= _above_zero(name, (said["own"] - said["other"])[those])
    return metrics


def _above_zero(name: str, differences: np.ndarray) -> dict[str, float]:
    return {name: float(differences.mean()), f"{name} > 0": 100 * float((differences > 0).mean())}


def by_asked(rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Group contrast rows by what is asked: a description, or something about it."""
    described = np.asarray(rows["contrast_asked"]) == "description"
    return {"descriptions": described, "questions": ~described}

"""Rewards to columns beside the rows, and how far they agree with the preferences that are there.

Shape legend: M = pairs of responses with unequal scores.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from mmalign.data.caches import LIST_LOGPS, LOGPS
from mmalign.difficulty.fuse import write_columns
from mmalign.difficulty.scoring import REWARDS, read_shard
from mmalign.errors import UserError
from mmalign.files import write_whole

REWARDED, SUMMARY = "rewarded.parquet", "rewards.json"
SIDES = ("score_chosen", "score_rejected")
TURNING_GAP = math.log(999)
"""MADPO's own (arXiv:2510.05342): pairs with a smaller margin count as hard, those with a larger one as easy."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 5
_FEW = 0.05


@dataclass(frozen=True)
class RowRewards:
    """The rewards of a row's responses, the chosen one's first."""

    index: int
    id: str
    rewards: list[float]


def read_rewards(shards: Sequence[Path]) -> list[RowRewards]:
    """Read the rewards of a reward model's shards.

    Raises:
        ValueError: If one is not finite.
    """
    found = [RowRewards(row["index"], row["id"], row[REWARDS]) for shard in shards for row in read_shard(shard) if "reason" not in row]
    for row in found:
        if not all(map(math.isfinite, row.rewards)):
            raise UserError(f"the rewards of row {row.id} are {row.rewards}; expected finite numbers: the reward model is damaged")
    return found


def subtract_logps(policy: Sequence[Path], reference: Sequence[Path], *, beta: float) -> list[RowRewards]:
    """Compute beta (log p under the policy - log p under the reference) of each response from the shards of both.

    It is the policy's implicit reward (arXiv:2305.18290, Eq. 6) up to a constant of the prompt. Rows that one of them
    rejected are left out.
    """
    expected = {row.index: row.rewards for row in _read_logps(reference)}
    return [
        RowRewards(row.index, row.id, [beta * (own - other) for own, other in zip(row.rewards, expected[row.index], strict=True)])
        for row in _read_logps(policy)
        if row.index in expected
    ]


def _read_logps(shards: Sequence[Path]) -> list[RowRewards]:
    rows = [row for shard in shards for row in read_shard(shard) if "reason" not in row]
    return [RowRewards(row["index"], row["id"], row[LIST_LOGPS] if LIST_LOGPS in row else [row[name] for name in LOGPS]) for row in rows]


def write_rewards(dataset: Dataset, found: Sequence[RowRewards], *, out: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``rewarded.parquet`` and ``rewards.json``.

    Pairs get ``score_chosen``, ``score_rejected`` and ``gap_reward``, lists get ``scores``. What stood in such a column is kept under
    ``given_`` and its name.

    Args:
        dataset: The rows.
        found: Their rewards, in the rows' order.
        out: Folder of both files.
        about: What the rewards are from, for the summary.

    Returns:
        The summary.

    Raises:
        ValueError: If no row has rewards.
    """
    if not found:
        raise UserError(f"no row of {len(dataset)} was scored; the reasons are in {out}")
    rows = [{"index": row.index, "id": row.id} for row in found]
    lists = "responses" in dataset.column_names
    columns: dict[str, list[Any]] = {"scores": [row.rewards for row in found]} if lists else _pair_columns(found)
    given = {f"given_{name}": dataset.select([row.index for row in found])[name][:] for name in columns if name in dataset.column_names}
    write_columns(dataset, rows, {**columns, **given}, out / REWARDED)
    indices = [row.index for row in found]
    names = set(dataset.column_names)
    sources = dataset.select(indices)["source"][:] if "source" in names else [None] * len(found)
    scores = dataset.select(indices)["scores"][:] if lists and "scores" in names else [None] * len(found)
    margins: dict[str, dict[str, list[float]]] = {}
    for row, source, own in zip(found, sources, scores, strict=True):
        margins.setdefault(str(source or "all"), {}).setdefault(row.id, []).extend(_margins(row.rewards, own, lists=lists))
    flat = {name: [value for own in rows.values() for value in own] for name, rows in margins.items()}
    summary = {**about, "num_rows": len(dataset), "num_scored": len(found), **summarise_margins(flat)}
    add_questions(summary, margins)
    write_whole(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def _pair_columns(found: Sequence[RowRewards]) -> dict[str, list[Any]]:
    sides = {name: [row.rewards[side] for row in found] for side, name in enumerate(SIDES)}
    return {**sides, "gap_reward": [row.rewards[0] - row.rewards[1] for row in found]}


def _margins(rewards: Sequence[float], scores: Sequence[float] | None, *, lists: bool) -> list[float]:
    """Reward of the better response - that of the worse one, for every two whose scores differ."""
    if not lists:
        return [rewards[0] - rewards[1]]
    given = [] if scores is None else list(zip(rewards, scores, strict=True))
    return [first - second for (first, a), (second, b) in permutations(given, 2) if a > b]


def summarise_margins(margins: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Say what margins are like.

    Args:
        margins: Reward of the better response - that of the worse one, by source; positive is right, 0 counts half.

    Returns:
        ``num_pairs``, ``accuracy`` over all pairs and ``macro_accuracy`` over sources, both again by ``sources``; ``log_loss``, the mean of
        -log sigmoid(margin); ``calibration`` of sigmoid(|margin|) in bins of equal width, and their ``calibration_error``, weighted by
        pairs; ``quantiles``; ``beyond_turning_gap``, the share with |margin| above MADPO's, with ``median_gap`` and ``advice``. Without
        pairs the count alone.
    """
    values = np.array([value for own in margins.values() for value in own], dtype=np.float64)
    if not len(values):
        return {"num_pairs": 0}
    sources = {name: {"num_pairs": len(own), "accuracy": _accuracy(np.array(own))} for name, own in sorted(margins.items()) if len(own)}
    bins = _calibrate(values)
    beyond, median = float((np.abs(values) > TURNING_GAP).mean()), float(np.median(np.abs(values)))
    return {
        "num_pairs": len(values),
        "accuracy": _accuracy(values),
        "macro_accuracy": float(np.mean([own["accuracy"] for own in sources.values()])),
        "sources": sources,
        "log_loss": float(np.logaddexp(0.0, -values).mean()),
        "calibration": bins,
        "calibration_error": sum(one["num_pairs"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / len(values),
        "quantiles": {str(share): float(np.quantile(values, share)) for share in _QUANTILES},
        "turning_gap": TURNING_GAP,
        "beyond_turning_gap": beyond,
        "median_gap": median,
        "advice": _advise(beyond, median),
    }


def add_questions(summary: dict[str, Any], margins: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Add how many questions have all their pairs in the right order (ACC+, arXiv:2502.10391), where some have several; a tie is wrong.

    Args:
        summary: Of ``summarise_margins``; ``num_questions`` and ``all_right`` are added to it and to each of its sources.
        margins: By source, then by the row's id.
    """
    right = {name: [min(own) > 0 for own in rows.values() if own] for name, rows in margins.items()}
    every = [one for own in right.values() for one in own]
    if not len(every) < summary["num_pairs"]:
        return
    for told, own in [(summary, every), *((told, right[name]) for name, told in summary["sources"].items())]:
        told |= {"num_questions": len(own), "all_right": sum(own) / len(own)}


def _accuracy(values: Any) -> float:
    return float((values > 0).mean() + (values == 0).mean() / 2)


def _calibrate(values: Any) -> list[dict[str, Any]]:
    """How often a model is right that is this sure."""
    confidence = 1 / (1 + np.exp(-np.abs(values)))
    number = np.minimum(((confidence - 0.5) / 0.5 * _BINS).astype(int), _BINS - 1)
    width = 0.5 / _BINS
    return [
        {
            "from": round(0.5 + i * width, 6),
            "to": round(0.5 + (i + 1) * width, 6),
            "num_pairs": int((number == i).sum()),
            "confidence": float(confidence[number == i].mean()),
            "accuracy": _accuracy(values[number == i]),
        }
        for i in range(_BINS)
        if (number == i).any()
    ]


def _advise(beyond: float, median: float) -> str | None:
    """What to set for MADPO, where its own turning gap leaves nearly all pairs on one side (ours)."""
    if _FEW <= beyond <= 1 - _FEW or median == 0:
        return None
    side = "above" if beyond > 0.5 else "below"
    return (
        f"{max(beyond, 1 - beyond):.1%} of the pairs are {side} MADPO's turning gap {TURNING_GAP:.3f}; "
        f"--objective madpo:turning_gap={median:.3g} is the median gap, with half of them on each side"
    )

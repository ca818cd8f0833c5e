"""Scored shards to a training set: vote, add the columns, summarise. Cheap, and can be done again with other options."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from mmalign.data.json_files import read_json_object
from mmalign.difficulty.scoring import read_shard
from mmalign.difficulty.voting import Weighting, fuse_gaps
from mmalign.engine.reference_cache import COLUMNS, FINGERPRINT

PROXIES = ("contrastive", "generative")
GAPS = tuple(f"gap_{name}" for name in PROXIES)
SCORED, CACHED = "scored.parquet", "cached.parquet"


def fuse_shards(dataset: Dataset, shards: Sequence[Path], *, out: Path, weighting: Weighting, by_source: bool) -> dict[str, Any]:
    """Write ``scored.parquet`` and ``difficulty.json``.

    Args:
        dataset: The rows that were scored.
        shards: From ``score_pairs``.
        out: Folder of the two files.
        weighting: What a proxy's vote weighs.
        by_source: Whether each data source has its own statistics and weights.

    Returns:
        The summary: statistics by group and proxy, agreement of the proxies, counts.

    Raises:
        ValueError: If no pair was scored, or a gap is not finite.
    """
    scores = _read_scores(dataset, shards, out=out)
    if any(name not in row for row in scores for name in GAPS):
        raise ValueError(f"{out} holds no gaps to vote with, as mmalign cache-logps leaves it; run mmalign score-difficulty")
    groups = [row["source"] if by_source else "all" for row in scores]
    difficulty = np.empty(len(scores))
    easiness = {name: np.empty(len(scores)) for name in PROXIES}
    statistics = {}
    for group in sorted(set(groups)):
        members = np.array([i for i, value in enumerate(groups) if value == group])
        gaps = {name: np.array([scores[i][f"gap_{name}"] for i in members]) for name in PROXIES}
        parts, difficulty[members], found = fuse_gaps(gaps, [scores[i]["id"] for i in members], weighting=weighting)
        statistics[group] = {name: asdict(value) for name, value in found.items()}
        for name in PROXIES:
            easiness[name][members] = parts[name]
    columns = {name: [row[name] for row in scores] for name in (*GAPS, *COLUMNS)}
    columns |= {f"easiness_{name}": easiness[name].tolist() for name in PROXIES} | {"difficulty": difficulty.tolist()}
    _write_columns(dataset, scores, columns, out / SCORED)
    signs = [np.array([row[f"gap_{name}"] > 0 for row in scores]) for name in PROXIES]
    summary = {
        "weighting": weighting,
        "statistics": statistics,
        "agreement": float((signs[0] == signs[1]).mean()),
        "num_scored": len(scores),
        "num_rejected": len(dataset) - len(scores),
        "mean_difficulty": float(difficulty.mean()),
    }
    (out / "difficulty.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def write_cached(dataset: Dataset, shards: Sequence[Path], *, out: Path) -> int:
    """Write ``cached.parquet``: the rows with the reference's log-probabilities and what they were made from.

    Returns:
        The number of rows.

    Raises:
        ValueError: If no pair was scored.
    """
    scores = _read_scores(dataset, shards, out=out)
    _write_columns(dataset, scores, {name: [row[name] for row in scores] for name in COLUMNS}, out / CACHED)
    return len(scores)


def _read_scores(dataset: Dataset, shards: Sequence[Path], *, out: Path) -> list[dict[str, Any]]:
    scores = [row for shard in shards for row in read_shard(shard) if "reason" not in row]
    if any(not 0 <= row["index"] < len(dataset) for row in scores):
        raise ValueError(f"the shards of {out} hold scores of rows that the data set of {len(dataset):,} rows has not; score it anew")
    if not scores:
        raise ValueError(f"no pair of {len(dataset)} was scored; the reasons are in {out / 'rejects.jsonl'}")
    # What all rows share stands once beside the shards.
    fingerprint = read_json_object(out / "scoring.json").get("reference")
    if not isinstance(fingerprint, str):
        raise ValueError(f"{out / 'scoring.json'} does not say which reference the scores are from; score the pairs again")
    return [{**row, FINGERPRINT: fingerprint} for row in scores]


def _write_columns(dataset: Dataset, scores: Sequence[dict[str, Any]], columns: dict[str, list[Any]], path: Path) -> None:
    scored = dataset.select([row["index"] for row in scores])
    if "id" not in scored.column_names:
        columns["id"] = [row["id"] for row in scores]
    for name, values in columns.items():
        scored = scored.remove_columns(name) if name in scored.column_names else scored
        scored = scored.add_column(name, values)
    partial = path.with_name(path.name + ".partial")
    scored.to_parquet(partial)
    partial.rename(path)

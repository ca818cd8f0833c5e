"""Scored shards to a training set: vote, add the columns, summarise. Cheap, and can be done again with other options."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from mmalign.data.caches import (
    CELL_LOGPS,
    LIST_LOGPS,
    LIST_TOKEN_LOGPS,
    LOGPS,
    REFERENCE_COLUMNS,
    REFERENCE_FINGERPRINT,
    REFERENCE_LIST_COLUMNS,
    REFERENCE_VIEWS,
    TOKEN_LOGPS,
)
from mmalign.data.datasets import add_columns
from mmalign.data.rows import check_columns
from mmalign.difficulty.agreement import compare_proxies, describe_sources, sign_agreement
from mmalign.difficulty.scoring import CUT, read_shard
from mmalign.difficulty.voting import FUSED, PROXIES, Gaps, fixed_weights, fuse_gaps, fuse_signs, name_proxies
from mmalign.errors import UserError
from mmalign.files import SCORED, SCORING, SUMMARY, read_json_object, whole, write_whole
from mmalign.options.difficulty import VoteOptions, Weighting

LOGP_FEATURES = {
    **dict.fromkeys(LOGPS, Value("float32")),
    **dict.fromkeys((*TOKEN_LOGPS, LIST_LOGPS), List(Value("float32"))),
    LIST_TOKEN_LOGPS: List(List(Value("float32"))),
}
_CACHED = frozenset((*REFERENCE_COLUMNS, *REFERENCE_LIST_COLUMNS, REFERENCE_VIEWS))
CACHED = "cached.parquet"


def check_votes(dataset: Dataset, votes: VoteOptions) -> None:
    """Check that all proxies can vote.

    Raises:
        ValueError: With the proxies, weights or missing columns.
    """
    fixed_weights(votes)
    extra = [_gap(name) for name in name_proxies(votes) if name not in PROXIES]
    check_columns(dataset.column_names, extra, what="the data set, for --extra-gaps,")


def fuse_shards(dataset: Dataset, shards: Sequence[Path], *, out: Path, votes: VoteOptions) -> dict[str, Any]:
    """Write ``scored.parquet`` and ``difficulty.json``.

    Args:
        dataset: The rows that were scored.
        shards: From ``score_pairs``.
        out: Folder of the two files.
        votes: Who votes, and with what weight.

    Returns:
        The summary: statistics by group and proxy, agreement of the proxies overall and by source, counts.

    Raises:
        ValueError: If no pair was scored, or a gap is not finite.
    """
    check_votes(dataset, votes)
    weights = fixed_weights(votes)
    scores, cached = _read_scores(dataset, shards, out=out)
    if any(_gap(name) not in row for row in scores for name in PROXIES):
        raise UserError(f"{out} holds no gaps to vote with, as mmalign cache-logps leaves it; run mmalign score-difficulty")
    gaps = _read_gaps(dataset, scores, name_proxies(votes))
    groups = [row["source"] if votes.by_source else "all" for row in scores]
    voted, statistics = _vote(gaps, groups, [row["id"] for row in scores], weighting=votes.weighting, weights=weights)
    difficulty = voted["difficulty"]
    columns = {_gap(name): values for name, values in gaps.items()} | voted
    write_columns(dataset, scores, {**columns, **{name: cached[name] for name in REFERENCE_COLUMNS}}, out / SCORED)
    summary = {
        "weighting": votes.weighting if weights is None else "fixed",
        "statistics": statistics,
        "agreement": sign_agreement(*(gaps[name] for name in PROXIES)),
        "proxy_agreement": compare_proxies(gaps),
        "sources": describe_sources(gaps, difficulty, [row["source"] for row in scores]),
        "num_scored": len(scores),
        "num_rejected": len(dataset) - len(scores),
        "mean_difficulty": float(difficulty.mean()),
        CUT: sum(row.get(CUT, 0) for row in scores),
    }
    write_whole(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def _vote(
    gaps: Mapping[str, Gaps], groups: Sequence[str], ids: Sequence[str], *, weighting: Weighting, weights: Mapping[str, float] | None
) -> tuple[dict[str, Gaps], dict[str, Any]]:
    """Vote within each group. Returns the columns of fused gap, easiness by proxy and difficulty; and statistics by group and proxy."""
    voted = {name: np.empty(len(ids)) for name in (_gap(FUSED), *(f"easiness_{name}" for name in gaps), "difficulty")}
    statistics = {}
    for group in sorted(set(groups)):
        members = np.flatnonzero(np.array(groups) == group)
        own = {name: values[members] for name, values in gaps.items()}
        easiness, voted["difficulty"][members], found = fuse_gaps(
            own, [ids[i] for i in members.tolist()], weighting=weighting, fixed=weights
        )
        voted[_gap(FUSED)][members] = fuse_signs(own, {name: value.weight for name, value in found.items()})
        for name, values in easiness.items():
            voted[f"easiness_{name}"][members] = values
        statistics[group] = {name: asdict(value) for name, value in found.items()}
    return voted, statistics


def _read_gaps(dataset: Dataset, scores: Sequence[dict[str, Any]], proxies: Sequence[str]) -> dict[str, Gaps]:
    gaps: dict[str, Gaps] = {name: np.array([row[_gap(name)] for row in scores], dtype=np.float64) for name in PROXIES}
    indices = [row["index"] for row in scores]
    for name in proxies[len(PROXIES) :]:
        values = dataset.select(indices)[_gap(name)]
        try:
            gaps[name] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"the column {_gap(name)} holds no numbers: {error}") from error
    return gaps


def _gap(proxy: str) -> str:
    return f"gap_{proxy}"


def write_cached(dataset: Dataset, shards: Sequence[Path], *, out: Path) -> int:
    """Write ``cached.parquet``: the rows with the reference's log-probabilities and what they were made from.

    Returns:
        The number of rows.

    Raises:
        ValueError: If no pair was scored.
    """
    scores, cached = _read_scores(dataset, shards, out=out)
    first = REFERENCE_LIST_COLUMNS if LIST_LOGPS in cached else REFERENCE_COLUMNS
    write_columns(dataset, scores, {name: cached[name] for name in dict.fromkeys((*first, *cached))}, out / CACHED)
    return len(scores)


def _read_scores(dataset: Dataset, shards: Sequence[Path], *, out: Path) -> tuple[list[dict[str, Any]], dict[str, pa.ChunkedArray]]:
    """Read what votes of each row that was scored, and the reference's columns in Arrow: as Python's numbers they need eight times that."""
    scores: list[dict[str, Any]] = []
    parts: list[pa.Table] = []
    for shard in shards:
        rows = [row for row in read_shard(shard) if "reason" not in row]
        if rows:
            parts.append(_take_cached(rows))
            scores += rows
    if any(not 0 <= row["index"] < len(dataset) for row in scores):
        raise UserError(f"the shards of {out} hold scores of rows that the data set of {len(dataset):,} rows has not; score it anew")
    if not scores:
        raise UserError(f"no pair of {len(dataset)} was scored; the reasons are in {out / 'rejects.jsonl'}")
    # What all rows share stands once beside the shards.
    fingerprint = read_json_object(out / SCORING).get("reference")
    if not isinstance(fingerprint, str):
        raise UserError(f"{out / 'scoring.json'} does not say which reference the scores are from; score the pairs again")
    cached = pa.concat_tables(parts)
    shared = pa.chunked_array([pa.repeat(fingerprint, len(scores))])
    return scores, {**dict(zip(cached.column_names, cached.columns, strict=True)), REFERENCE_FINGERPRINT: shared}


def _take_cached(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Take the reference's columns out of the lines of a shard."""
    names = [name for name in rows[0] if name in _CACHED or name.startswith(CELL_LOGPS)]
    # Log-probabilities are float32 and are kept as such: half the size of what JSON's numbers would become.
    features = Features({name: LOGP_FEATURES.get(name, Value("float32" if name.startswith(CELL_LOGPS) else "string")) for name in names})
    return pa.table({name: [row.pop(name) for row in rows] for name in names}, schema=pa.schema(features.type))


def write_columns(dataset: Dataset, scores: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], path: Path) -> None:
    """Write the rows that were scored with their new columns; ``scores`` says which rows, by ``index``, and their ids."""
    scored = dataset.select([row["index"] for row in scores])
    if REFERENCE_FINGERPRINT in columns:
        # What an earlier reference said of other images has no fingerprint of its own, and would pass for this one's.
        scored = scored.remove_columns([name for name in scored.column_names if name == REFERENCE_VIEWS or name.startswith(CELL_LOGPS)])
    ids = {} if "id" in scored.column_names else {"id": [row["id"] for row in scores]}
    with whole(path) as partial:
        add_columns(scored, {**columns, **ids}).to_parquet(partial)

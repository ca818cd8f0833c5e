"""Score pairs shard by shard: each shard is written whole or not at all, so a stopped run goes on and ends with the same bytes."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from mmalign.data.encode import EncodedPrompt, encode_responses
from mmalign.data.rejects import Rejects
from mmalign.data.rows import PAIR_COLUMNS, PairRow, check_columns, read_pair, row_id
from mmalign.difficulty.contrastive import score_contrastive
from mmalign.difficulty.generative import score_generative
from mmalign.engine.probe import probe_rows
from mmalign.engine.reference_cache import LOGPS, cache_columns

SHARD_SIZE = 512
WINDOW_BATCHES = 8
"""Batches whose pairs are sorted by length together."""


@dataclass(frozen=True)
class Scorers:
    """The frozen models with their processors."""

    mllm: Any
    processor: Any
    clip: Any = None
    """None where only log-probabilities are wanted."""
    clip_processor: Any = None


@dataclass(frozen=True)
class ScoreConfig:
    """How pairs are read and batched."""

    batch_size: int = 16
    max_length: int | None = None
    image_root: Path | None = None
    max_reject_share: float = 0.05


def score_pairs(dataset: Dataset, scorers: Scorers, *, out: Path, fingerprint: Mapping[str, Any], config: ScoreConfig) -> list[Path]:
    """Compute both gaps of every pair, or without a contrastive model the log-probabilities behind the generative one.

    Args:
        dataset: Rows with TRL's columns.
        scorers: Contrastive model and un-aligned multimodal LLM.
        out: Folder of the shards.
        fingerprint: What the scores are made from; a folder with another one is refused.
        config: Reading and batching. Batches lie inside a shard, so that a shard's bytes don't depend on the others.

    Returns:
        The shards, JSON lines of scores in the rows' order.

    Raises:
        ValueError: If columns are missing, too many rows are broken, or ``out`` holds scores of something else.
    """
    check_columns(dataset.column_names, PAIR_COLUMNS, what="the data set")
    claim(out, {**fingerprint, "shard_size": SHARD_SIZE, "batch_size": config.batch_size, "max_length": config.max_length})
    (out / "shards").mkdir(exist_ok=True)
    rejects = Rejects(out / "rejects.jsonl", max_share=config.max_reject_share)
    shards = []
    with tqdm(total=len(dataset), desc="scoring pairs", unit="pair", leave=False) as bar:
        for start in range(0, len(dataset), SHARD_SIZE):
            path = out / "shards" / f"{start:09d}.jsonl"
            indices = range(start, min(start + SHARD_SIZE, len(dataset)))
            if not path.is_file():
                _write_lines(path, _score_shard(dataset, indices, scorers, config, bar))
            else:
                bar.update(len(indices))
            for row in read_shard(path):
                if "reason" in row:
                    rejects.add(row["id"], row["reason"])
            rejects.check(indices.stop)
            shards.append(path)
    rejects.check(len(dataset), final=True)
    return shards


def read_shard(path: Path) -> list[dict[str, Any]]:
    """Read one shard's lines: scores, or ``id`` and ``reason`` of a broken row."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def claim(out: Path, fingerprint: Mapping[str, Any]) -> None:
    """Mark a folder as holding scores of one data set by one pair of models.

    Raises:
        ValueError: If it holds others; the message names both values.
    """
    path = out / "scoring.json"
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in fingerprint if held.get(key) != fingerprint[key]]
        if differing:
            key = differing[0]
            raise ValueError(f"{out} holds scores with {key} {held.get(key)!r}, not {fingerprint[key]!r}; choose another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(fingerprint, indent=1, sort_keys=True))


def _score_shard(dataset: Dataset, indices: range, scorers: Scorers, config: ScoreConfig, bar: Any) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    shared: bool | None = None
    # Decoded images are held for one window, not for the whole shard.
    window = WINDOW_BATCHES * config.batch_size
    for start in range(0, len(indices), window):
        good, broken = _read_window(dataset, indices[start : start + window], scorers, config)
        lines += broken
        bar.update(len(broken))
        if good and shared is None:
            # Asked once a shard, on its first pairs: a shard's bytes depend on nothing outside it.
            choice = probe_rows(scorers.mllm, [good[0][2]], pad_token_id=scorers.processor.tokenizer.pad_token_id)
            shared = choice.shared
            if not shared:
                bar.write(choice.reason)
        for first in range(0, len(good), config.batch_size):
            part = good[first : first + config.batch_size]
            lines += _score_batch(part, scorers, shared=bool(shared))
            bar.update(len(part))
    return sorted(lines, key=lambda line: line["index"])


_Item = tuple[int, PairRow, EncodedPrompt]


def _read_window(
    dataset: Dataset, indices: Sequence[int], scorers: Scorers, config: ScoreConfig
) -> tuple[list[_Item], list[dict[str, Any]]]:
    """Read and tokenise pairs, rows of about the same length together; and a line for each broken one."""
    good: list[_Item] = []
    broken: list[dict[str, Any]] = []
    for index in indices:
        raw = dataset[index]
        try:
            row = read_pair(raw, index=index, image_root=config.image_root)
            encoded = encode_responses(
                scorers.processor, images=row.images, prompt=row.prompt, responses=[row.chosen, row.rejected], max_length=config.max_length
            )
            good.append((index, row, encoded))
        except ValueError as error:
            broken.append({"index": index, "id": row_id(raw, index=index), "reason": str(error)})
    return sorted(good, key=lambda item: (item[2].num_tokens, item[0])), broken


def _score_batch(part: Sequence[_Item], scorers: Scorers, *, shared: bool) -> list[dict[str, Any]]:
    gaps: list[dict[str, float]] = [{} for _ in part]
    if scorers.clip is not None:
        found = score_contrastive(scorers.clip, scorers.clip_processor, [row for _, row, _ in part])
        gaps = [{"gap_contrastive": gap} for gap in found]
    encoded = [item for _, _, item in part]
    generative = score_generative(scorers.mllm, encoded, pad_token_id=scorers.processor.tokenizer.pad_token_id, shared=shared)
    lines = []
    for (index, row, prompt), gap, (chosen, rejected) in zip(part, gaps, generative, strict=True):
        cached = cache_columns(prompt, chosen, rejected)
        if gap:
            gap["gap_generative"] = cached[LOGPS[0]] - cached[LOGPS[1]]
        lines.append({"index": index, "id": row.id, "source": row.source, **gap, **cached})
    return lines


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    _write_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)

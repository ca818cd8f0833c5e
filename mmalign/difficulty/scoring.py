"""Score pairs shard by shard: each shard is written whole or not at all, so a stopped run goes on and ends with the same bytes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from mmalign.data.encode import EncodedPrompt, encode_row
from mmalign.data.images import digest_images
from mmalign.data.rejects import Rejects
from mmalign.data.rows import LIST_COLUMNS, PAIR_COLUMNS, ListRow, PairRow, check_columns, read_list, read_pair, row_id
from mmalign.difficulty.contrastive import score_contrastive
from mmalign.difficulty.generative import score_generative, score_responses
from mmalign.difficulty.shares import Share
from mmalign.engine.probe import PROBED_ROWS, probe_rows
from mmalign.engine.reference_cache import IMAGES, LIST_LOGPS, LOGPS, TEXT, TOKEN_LOGPS, cache_columns, cache_list_columns
from mmalign.errors import UserError
from mmalign.files import claim, expected_form, write_whole
from mmalign.options.rows import AnswerEnd

SHARD_SIZE = 512
CUT = "num_cut_sentences"
"""Of a line: sentences that the contrastive model read in pieces."""
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
    answer_end: AnswerEnd = "token"
    image_root: Path | None = None
    max_reject_share: float = 0.05
    lists: bool = False
    """Rows have responses and scores for chosen and rejected; only log-probabilities are computed."""


def score_pairs(
    dataset: Dataset,
    load: Callable[[], Scorers],
    *,
    out: Path,
    fingerprint: Mapping[str, Any],
    config: ScoreConfig,
    share: Share = Share(),  # noqa: B008
) -> None:
    """Compute both gaps of every pair, or without a contrastive model the log-probabilities behind the generative one.

    Args:
        dataset: Rows with TRL's columns.
        load: Loads contrastive model and un-aligned multimodal LLM; called only where something is left to score.
        out: Folder of the shards, JSON lines of scores in the rows' order. Other processes may write other shards into it.
        fingerprint: What the scores are made from; a folder with another one is refused.
        config: Reading and batching. Batches lie inside a shard, so that a shard's bytes don't depend on the others.
        share: The part of the shards that is this process's.

    Raises:
        ValueError: If columns are missing, too many rows are broken, or ``out`` holds scores of something else, images included.
    """
    check_columns(dataset.column_names, LIST_COLUMNS if config.lists else PAIR_COLUMNS, what="the data set")
    settings = {
        "shard_size": SHARD_SIZE,
        "batch_size": config.batch_size,
        "max_length": config.max_length,
        "answer_end": config.answer_end,
    }
    claim(out / "scoring.json", {**fingerprint, **settings}, what="other scores")
    (out / "shards").mkdir(exist_ok=True)
    mine = share.take(list_shards(out, len(dataset)))
    part = "" if share.count == 1 else f"-{share.index + 1}-of-{share.count}"
    rejects = Rejects(out / f"rejects{part}.jsonl", max_share=config.max_reject_share)
    scorers, num_seen = None, 0
    with tqdm(total=_num_rows(mine, dataset), desc="scoring pairs", unit="pair", leave=False, disable=share.index > 0) as bar:
        for path in mine:
            indices = _rows_of(path, dataset)
            if not path.is_file():
                scorers = scorers or load()
                lines = _score_shard(dataset, indices, scorers, config, bar)
                write_whole(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
            else:
                _check_images(path, dataset, config)
                bar.update(len(indices))
            num_seen += len(indices)
            _add_rejects(path, rejects)
            rejects.check(num_seen)
    rejects.check(num_seen, final=True)


def merge_shards(out: Path, num_rows: int, *, max_reject_share: float = 1.0) -> list[Path]:
    """Check that all shards are there, and write ``rejects.jsonl`` from them.

    Returns:
        The shards, in the rows' order.

    Raises:
        ValueError: If shards are missing, with their names; or if too many rows are broken.
    """
    shards = list_shards(out, num_rows)
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"{len(missing)} of {len(shards)} shards are missing in {out / 'shards'}: {named}; "
            "run the parts that have not ended again, or the scoring command without --shard"
        )
    rejects = Rejects(out / "rejects.jsonl", max_share=max_reject_share)
    for path in shards:
        _add_rejects(path, rejects)
    rejects.check(num_rows, final=True)
    for part in out.glob("rejects-*-of-*.jsonl"):
        part.unlink()
    return shards


def list_shards(out: Path, num_rows: int) -> list[Path]:
    """List the shard files of a data set, in the rows' order, whether they are there or not."""
    return [out / "shards" / f"{start:09d}.jsonl" for start in range(0, num_rows, SHARD_SIZE)]


def _rows_of(path: Path, dataset: Dataset) -> range:
    return range(int(path.stem), min(int(path.stem) + SHARD_SIZE, len(dataset)))


def _num_rows(shards: Sequence[Path], dataset: Dataset) -> int:
    return sum(len(_rows_of(path, dataset)) for path in shards)


def _add_rejects(path: Path, rejects: Rejects) -> None:
    for row in read_shard(path):
        if "reason" in row:
            rejects.add(row["id"], row["reason"])


def read_shard(path: Path) -> list[dict[str, Any]]:
    """Read one shard's lines: scores, or ``id`` and ``reason`` of a broken row.

    Raises:
        ValueError: If the shard is damaged; removed, it is scored anew.
    """
    with expected_form(path):
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}; remove it and run again to have its pairs scored anew") from error
        for number, row in enumerate(rows, start=1):
            if odd := [key for key, value in row.items() if not _is_kind(key, value)] or [key for key in _needed(row) if key not in row]:
                raise UserError(f"{path}, line {number}: {', '.join(odd)} is missing or of another kind; remove the shard and run again")
    return rows


def _needed(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "reason" in row:
        return ("index", "id", "reason")
    return ("index", "id", TEXT, IMAGES, *((LIST_LOGPS,) if LIST_LOGPS in row else ("source", *LOGPS, *TOKEN_LOGPS)))


def _is_kind(key: str, value: Any) -> bool:
    if key in (*TOKEN_LOGPS, LIST_LOGPS):
        return isinstance(value, list) and all(isinstance(one, float) for one in value)
    if key in LOGPS or key.startswith("gap_"):
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)
    return type(value) is int if key in ("index", CUT) else isinstance(value, str)


def _check_images(path: Path, dataset: Dataset, config: ScoreConfig) -> None:
    """Refuse a shard whose images are other ones by now. Embedded ones can't be: the data files' hashes were compared."""
    if config.image_root is None:
        return
    read = read_list if config.lists else read_pair
    for line in read_shard(path):
        if "reason" in line:
            continue
        row: PairRow | ListRow = read(dataset[line["index"]], index=line["index"], image_root=config.image_root)
        found = digest_images(row.images)
        if line[IMAGES] != found:
            raise UserError(
                f"{path} holds scores of row {row.id} with the images {line[IMAGES] or 'none'}, and the row's are {found or 'none'} now; "
                "remove the shards of images that changed to have them scored anew, or choose another --out"
            )


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
            asked = [prompt for _, _, prompt in good[:PROBED_ROWS]]
            choice = probe_rows(scorers.mllm, asked, pad_token_id=scorers.processor.tokenizer.pad_token_id)
            shared = choice.shared
            if not shared:
                bar.write(choice.reason)
        for first in range(0, len(good), config.batch_size):
            part = good[first : first + config.batch_size]
            lines += _score_batch(part, scorers, shared=bool(shared))
            bar.update(len(part))
    return sorted(lines, key=lambda line: line["index"])


_Item = tuple[int, PairRow | ListRow, EncodedPrompt]


def _read_window(
    dataset: Dataset, indices: Sequence[int], scorers: Scorers, config: ScoreConfig
) -> tuple[list[_Item], list[dict[str, Any]]]:
    """Read and tokenise pairs, rows of about the same length together; and a line for each broken one."""
    good: list[_Item] = []
    broken: list[dict[str, Any]] = []
    for index in indices:
        raw = dataset[index]
        try:
            read = read_list if config.lists else read_pair
            row: PairRow | ListRow = read(raw, index=index, image_root=config.image_root)
            good.append((index, row, encode_row(scorers.processor, row, answer_end=config.answer_end, max_length=config.max_length)))
        except UserError as error:
            broken.append({"index": index, "id": row_id(raw, index=index), "reason": str(error)})
    return sorted(good, key=lambda item: (item[2].num_tokens, item[0])), broken


def _score_batch(part: Sequence[_Item], scorers: Scorers, *, shared: bool) -> list[dict[str, Any]]:
    pad_token_id = scorers.processor.tokenizer.pad_token_id
    if isinstance(part[0][1], ListRow):
        found_lists = score_responses(scorers.mllm, [prompt for _, _, prompt in part], pad_token_id=pad_token_id, shared=shared)
        return [
            {"index": index, "id": row.id, **cache_list_columns(prompt, logps)}
            for (index, row, prompt), logps in zip(part, found_lists, strict=True)
        ]
    pairs = [(index, row, prompt) for index, row, prompt in part if isinstance(row, PairRow)]
    gaps: list[dict[str, Any]] = [{} for _ in part]
    if scorers.clip is not None:
        found = score_contrastive(scorers.clip, scorers.clip_processor, [row for _, row, _ in pairs])
        gaps = [{"gap_contrastive": one.gap, CUT: one.num_cut} for one in found]
    encoded = [item for _, _, item in part]
    generative = score_generative(scorers.mllm, encoded, pad_token_id=pad_token_id, shared=shared)
    lines = []
    for (index, row, prompt), gap, (chosen, rejected) in zip(pairs, gaps, generative, strict=True):
        cached = cache_columns(prompt, chosen, rejected)
        if gap:
            gap["gap_generative"] = cached[LOGPS[0]] - cached[LOGPS[1]]
        lines.append({"index": index, "id": row.id, "source": row.source, **gap, **cached})
    return lines

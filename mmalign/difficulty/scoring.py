"""Score pairs shard by shard: each shard is written whole or not at all, so a stopped run resumes and ends with the same bytes."""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from tqdm import tqdm

from mmalign.data.caches import (
    CELL_LOGPS,
    LIST_LOGPS,
    LIST_TOKEN_LOGPS,
    LOGPS,
    REFERENCE_IMAGES,
    REFERENCE_TEXT,
    TOKEN_LOGPS,
    cache_cells,
    cache_list,
    cache_pair,
    check_images,
)
from mmalign.data.encode import EncodedPrompt, encode_row
from mmalign.data.images import digest_images
from mmalign.data.rejects import Rejects
from mmalign.data.reward_prompts import RewardPrompts
from mmalign.data.rows import LIST_COLUMNS, PAIR_COLUMNS, ListRow, PairRow, check_columns, read_list, read_pair, row_id
from mmalign.data.shards import SHARD_SIZE, WINDOW_BATCHES, Advance, Shards, Share, write_lines
from mmalign.difficulty.contrastive import score_contrastive
from mmalign.difficulty.generative import score_generative, score_responses
from mmalign.engine.probe import PROBED_ROWS, probe_rows
from mmalign.engine.rewards import score_rewards
from mmalign.engine.views import NO_VIEWS, Views, encode_views
from mmalign.errors import UserError
from mmalign.files import SCORING, claimed, expected_form
from mmalign.options.difficulty import CacheOptions, ReadOptions

CUT = "num_cut_sentences"
"""Of a line: sentences that the contrastive model read in pieces."""
REWARDS = "rewards"
"""Of a line: a reward model's of each response."""


@dataclass(frozen=True)
class Scorers:
    """The frozen models with their processors."""

    mllm: Any
    processor: Any
    clip: Any = None
    """None where only log-probabilities are wanted."""
    clip_processor: Any = None
    rewards: RewardPrompts | None = None
    """How responses are asked about; with it the multimodal LLM is a reward model, and nothing but rewards is wanted."""


@dataclass(frozen=True)
class _Rows:
    """A data set, and how its rows are read."""

    dataset: Dataset
    options: ReadOptions
    lists: bool
    views: Views

    def read(self, index: int) -> PairRow | ListRow:
        """Read a row with its images."""
        raw, root = self.dataset[index], self.options.image_root
        if self.lists:
            # What is learnt from them is not asked here, so that a policy's own samples may be alike.
            return read_list(raw, index=index, image_root=root, sampled=True)
        return read_pair(raw, index=index, image_root=root, with_other=self.views.need_other)

    def can_read(self, index: int) -> bool:
        """Whether a row can be read with its images."""
        try:
            self.read(index)
        except UserError:
            return False
        return True

    def encode(self, row: PairRow | ListRow, scorers: Scorers) -> list[EncodedPrompt]:
        """Tokenise a row: the pair or list itself, and behind it each of its views; the own image's is the pair where it asks no more."""
        end, most, processor = self.options.answer_end, self.options.max_length, scorers.processor
        if scorers.rewards is not None:
            responses = [row.chosen, row.rejected] if isinstance(row, PairRow) else row.responses
            return [scorers.rewards.encode(images=row.images, prompt=row.prompt, responses=responses, max_length=most)]
        if self.views.alone or isinstance(row, ListRow):
            return [encode_row(processor, row, answer_end=end, max_length=most)]
        assert isinstance(self.options, CacheOptions)
        seen = encode_views(processor, row, self.views, self.options, answer_end=end, max_length=most)
        is_pair = len(seen[0].responses) == len((row.chosen, row.rejected))
        return [seen[0] if is_pair else encode_row(processor, row, answer_end=end, max_length=most), *seen]


def score_pairs(
    dataset: Dataset,
    load: Callable[[], Scorers],
    *,
    fingerprint: Mapping[str, Any],
    options: ReadOptions,
    lists: bool,
    views: Views = NO_VIEWS,
    share: Share = Share(),  # noqa: B008
) -> None:
    """Compute both gaps of every pair, without a contrastive model the log-probabilities behind the generative one, or rewards.

    Args:
        dataset: Rows with TRL's columns.
        load: Loads contrastive model and un-aligned multimodal LLM; called only where something is left to score.
        fingerprint: What the scores are made from; a folder with another one is refused.
        options: Reading and batching, and the folder of the shards, JSON lines of scores in the rows' order. Batches lie inside a shard, so
            that a shard's bytes don't depend on the others; other processes may write other shards.
        lists: Whether rows have responses and scores for chosen and rejected; of those only log-probabilities or rewards are computed.
        views: Other images and answers that the multimodal LLM is asked about.
        share: The part of the shards that is this process's.

    Raises:
        ValueError: If columns are missing, too many rows are broken, or ``out`` holds scores of something else, images included.
    """
    check_columns(dataset.column_names, LIST_COLUMNS if lists else PAIR_COLUMNS, what="the data set")
    settings = {name: getattr(options, name) for name in ("batch_size", "max_length", "answer_end")}
    load, rows = functools.cache(load), _Rows(dataset, options, lists, views)

    def write(indices: range, path: Path, advance: Advance) -> None:
        write_lines(path, _score_shard(rows, indices, load(), advance))

    def keep(path: Path) -> bool:
        return _is_good(path, rows)

    shards = find_shards(options.out, len(dataset))
    record = {**fingerprint, "shard_size": SHARD_SIZE, **settings}
    with claimed(options.out / SCORING, record, what="other scores", shared=share.count > 1):
        done = shards.finish(write, label="scoring pairs", keep=keep, share=share, unit="pair")
        rejects = Rejects(options.out / f"rejects{share.suffix}.jsonl", max_share=options.max_reject_share)
        shards.reject_broken(done, _read_broken, rejects)


def merge_shards(out: Path, num_rows: int, *, max_reject_share: float = 1.0) -> list[Path]:
    """Check that all shards are there, and write ``rejects.jsonl`` from them.

    Returns:
        The shards, in the rows' order.

    Raises:
        ValueError: If shards are missing, with their names; or if too many rows are broken.
    """
    shards = find_shards(out, num_rows).paths()
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"{len(missing)} of {len(shards)} shards are missing in {out / 'shards'}: {named}; "
            "run the parts that have not ended again, or the scoring command without --shard"
        )
    rejects = Rejects(out / "rejects.jsonl", max_share=max_reject_share)
    for path in shards:
        for name, reason in _read_broken(path):
            rejects.add(name, reason)
    rejects.check(num_rows, final=True)
    for part in out.glob("rejects-*-of-*.jsonl"):
        part.unlink()
    return shards


def find_shards(out: Path, num_rows: int) -> Shards:
    """Name the shards of a folder of scores."""
    return Shards(out / "shards", num_rows, SHARD_SIZE)


def _read_broken(path: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["reason"]) for row in read_shard(path) if "reason" in row]


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
    if REWARDS in row:
        return ("index", "id", REFERENCE_IMAGES)
    own = (LIST_LOGPS, LIST_TOKEN_LOGPS) if LIST_LOGPS in row else ("source", *LOGPS, *TOKEN_LOGPS)
    return ("index", "id", REFERENCE_TEXT, REFERENCE_IMAGES, *own)


def _is_kind(key: str, value: Any) -> bool:
    if key in (*TOKEN_LOGPS, LIST_LOGPS, REWARDS):
        return isinstance(value, list) and all(isinstance(one, float) for one in value)
    if key == LIST_TOKEN_LOGPS:
        return isinstance(value, list) and all(_is_kind(LIST_LOGPS, one) for one in value)
    if key in LOGPS or key.startswith("gap_"):
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)
    if key.startswith(CELL_LOGPS):
        return isinstance(value, float)
    return type(value) is int if key in ("index", CUT) else isinstance(value, str)


def _is_good(path: Path, rows: _Rows) -> bool:
    """Whether no row of a shard that could not be read can be read by now. A shard whose images are other ones by now is refused.

    Embedded images can't be: the data files' hashes were compared.
    """
    for line in read_shard(path) if rows.options.image_root is not None else ():
        if "reason" not in line:
            row = rows.read(line["index"])
            check_images(path, row.id, line[REFERENCE_IMAGES], row.images)
        elif REFERENCE_IMAGES not in line and rows.can_read(line["index"]):
            return False
    return True


def _score_shard(rows: _Rows, indices: range, scorers: Scorers, advance: Advance) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    shared: bool | None = None
    batch_size = rows.options.batch_size
    # Decoded images are held for one window, not for the whole shard.
    window = WINDOW_BATCHES * batch_size
    for start in range(0, len(indices), window):
        good, broken = _read_window(rows, indices[start : start + window], scorers)
        lines += broken
        advance(len(broken))
        if good and shared is None:
            # Asked once a shard, on its first pairs: a shard's bytes depend on nothing outside it, and the shortest may have no images.
            asked = [prompt for _, _, (own, *seen) in good[:PROBED_ROWS] for prompt in seen or [own]]
            choice = probe_rows(scorers.mllm, asked, pad_token_id=scorers.processor.tokenizer.pad_token_id)
            shared = choice.shared
            if not shared:
                tqdm.write(choice.reason)
        # Rows of about the same length together.
        good.sort(key=lambda item: (item[2][0].num_tokens, item[0]))
        for first in range(0, len(good), batch_size):
            part = good[first : first + batch_size]
            lines += [_keep_finite(line) for line in _score_batch(part, scorers, rows.views, shared=bool(shared))]
            advance(len(part))
    return sorted(lines, key=lambda line: line["index"])


def _keep_finite(line: dict[str, Any]) -> dict[str, Any]:
    """Turn scores that are no numbers into the line of a broken row: no other row need be scored again for it."""
    odd = next((key for key, value in line.items() if not _is_finite(value)), None)
    if odd is None:
        return line
    reason = f"{odd} is not finite: a model overflows at this row, or is damaged; try --dtype float32"
    return {name: line[name] for name in ("index", "id", REFERENCE_IMAGES)} | {"reason": reason}


def _is_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


_Item = tuple[int, PairRow | ListRow, list[EncodedPrompt]]


def _read_window(rows: _Rows, indices: Sequence[int], scorers: Scorers) -> tuple[list[_Item], list[dict[str, Any]]]:
    """Encode pairs, and make a line for each broken one, with its images where it was read."""
    good: list[_Item] = []
    broken: list[dict[str, Any]] = []
    for index in indices:
        row = None
        try:
            row = rows.read(index)
            good.append((index, row, rows.encode(row, scorers)))
        except UserError as error:
            seen = {} if row is None else {REFERENCE_IMAGES: digest_images(row.images)}
            broken.append({"index": index, "id": row_id(rows.dataset[index], index=index), "reason": str(error), **seen})
    return good, broken


def _score_batch(part: Sequence[_Item], scorers: Scorers, views: Views, *, shared: bool) -> list[dict[str, Any]]:
    pad_token_id = scorers.processor.tokenizer.pad_token_id
    if scorers.rewards is not None:
        found = score_rewards(scorers.mllm, [prompts[0] for _, _, prompts in part], scorers.rewards, shared=shared)
        return [
            {"index": index, "id": row.id, REFERENCE_IMAGES: prompts[0].image_digest, REWARDS: rewards}
            for (index, row, prompts), rewards in zip(part, found, strict=True)
        ]
    if isinstance(part[0][1], ListRow):
        found_lists = score_responses(scorers.mllm, [prompts[0] for _, _, prompts in part], pad_token_id=pad_token_id, shared=shared)
        return [
            {"index": index, "id": row.id, **cache_list(prompts[0], logps)}
            for (index, row, prompts), logps in zip(part, found_lists, strict=True)
        ]
    pairs = [(index, row, prompts[0]) for index, row, prompts in part if isinstance(row, PairRow)]
    gaps: list[dict[str, Any]] = [{} for _ in part]
    if scorers.clip is not None:
        seen = score_contrastive(scorers.clip, scorers.clip_processor, [row for _, row, _ in pairs])
        gaps = [{"gap_contrastive": one.gap, CUT: one.num_cut} for one in seen]
    encoded = [prompts[0] for _, _, prompts in part]
    generative = score_generative(scorers.mllm, encoded, pad_token_id=pad_token_id, shared=shared)
    cells = _score_cells([prompts for _, _, prompts in part], generative, scorers, views, shared=shared)
    lines = []
    for (index, row, prompt), gap, (chosen, rejected), other in zip(pairs, gaps, generative, cells, strict=True):
        cached = cache_pair(prompt, chosen, rejected)
        if gap:
            gap["gap_generative"] = cached[LOGPS[0]] - cached[LOGPS[1]]
        lines.append({"index": index, "id": row.id, "source": row.source, **gap, **cached, **other})
    return lines


def _score_cells(
    part: Sequence[list[EncodedPrompt]], pairs: Sequence[tuple[Tensor, Tensor]], scorers: Scorers, views: Views, *, shared: bool
) -> list[dict[str, Any]]:
    """The columns of other images and answers; none where nobody asked. What the pairs' own scores say already is not asked again."""
    if views.alone:
        return [{} for _ in part]
    asked = [prompt for own, *seen in part for prompt in seen if prompt is not own]
    found = iter(score_responses(scorers.mllm, asked, pad_token_id=scorers.processor.tokenizer.pad_token_id, shared=shared))
    columns = []
    for (own, *seen), pair in zip(part, pairs, strict=True):
        logps = [values for prompt in seen for values in (pair if prompt is own else next(found))]
        columns.append(cache_cells(seen, views.cells, logps))
    return columns

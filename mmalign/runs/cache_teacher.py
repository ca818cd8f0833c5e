"""``mmalign cache-teacher``: a teacher's likeliest tokens beside chats, for a student that mimics it without having it in memory."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from accelerate.utils import send_to_device
from datasets import Dataset, Features, List, Value

from mmalign.data.caches import (
    TEACHER_COLUMNS,
    TEACHER_FINGERPRINT,
    TEACHER_IMAGES,
    TEACHER_TEXT,
    TOP_IDS,
    TOP_LOGPS,
    VOCABULARY,
    cache_teacher,
    check_images,
)
from mmalign.data.datasets import add_columns, hash_data_files, load_rows
from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.images import digest_images
from mmalign.data.rejects import Rejects
from mmalign.data.rows import CHAT_COLUMNS, ChatRow, check_columns, read_chat, row_id
from mmalign.data.shards import (
    SHARD_SIZE,
    WINDOW_BATCHES,
    Advance,
    Shards,
    parse_share,
    read_lines,
    split_among_processes,
    wait_for_all,
    write_lines,
)
from mmalign.engine.batch import collate_prompts
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.engine.student import compute_teacher_states, find_top_tokens, head_size
from mmalign.errors import UserError
from mmalign.files import SCORING, claimed
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import best_device, check_exists, load_mllm
from mmalign.options.difficulty import CacheTeacherOptions

_Read = tuple[int, ChatRow, EncodedPrompt]


def run_cache_teacher(options: CacheTeacherOptions) -> None:
    """Write ``OUT/data/*.parquet``: the good rows with the teacher's columns. Nothing is held in memory beyond a shard.

    Raises:
        ValueError: If columns are missing, too many rows are broken, or ``OUT`` holds a cache of something else, images included.
    """
    if options.top_k < 1:
        raise UserError(f"top_k is {options.top_k}; expected 1 token or more, such as 64")
    check_exists(options.model, "config.json", "adapter_config.json")
    share = split_among_processes(parse_share(options.shard))
    fingerprint = fingerprint_checkpoint(options.model, dtype=options.dtype)
    dataset = load_rows(options.chats)
    check_columns(dataset.column_names, CHAT_COLUMNS, what="the data set")
    data = hash_data_files(options.chats)
    settings = {name: getattr(options, name) for name in ("top_k", "storage", "max_length", "answer_end")}
    record = {"data": data, "teacher": fingerprint, "shard_size": SHARD_SIZE, **settings}

    @functools.cache
    def load() -> tuple[Any, Any]:
        model, processor = load_mllm(options.model, dtype=options.dtype)
        return model.to(best_device()), processor

    def write(rows: range, path: Path, advance: Advance) -> None:
        columns, broken = _ask_teacher(*load(), dataset, rows, options, advance)
        write_lines(_broken_path(shards.folder, rows.start), broken)
        _write_shard(path, dataset, columns, fingerprint, options.storage)

    def keep(path: Path) -> bool:
        return _is_good(path, dataset, options.image_root)

    shards = Shards(options.out / "data", len(dataset), SHARD_SIZE, ".parquet")
    with claimed(options.out / SCORING, record, what="another cache", shared=share.count > 1):
        done = shards.finish(write, label="asking the teacher", keep=keep, share=share, unit="chat")
        rejects = Rejects(options.out / f"rejects{share.suffix}.jsonl", max_share=options.max_reject_share)
        shards.reject_broken(done, _read_broken, rejects)
    if wait_for_all():
        print(f"the {options.top_k} likeliest tokens of {options.model} saved in {shards.folder}")


def _ask_teacher(
    model: Any, processor: Any, dataset: Dataset, rows: range, options: CacheTeacherOptions, advance: Advance
) -> tuple[dict[int, Mapping[str, Any]], list[dict[str, Any]]]:
    """Return the teacher's columns of each good row, and the reason of each broken one."""
    # Rows past a padding row of the head are no tokens.
    vocabulary = min(head_size(model), len(processor.tokenizer))
    if options.top_k >= vocabulary:
        raise UserError(f"top_k is {options.top_k} of {vocabulary} tokens; expected fewer")
    pad_token_id = processor.tokenizer.pad_token_id
    columns: dict[int, Mapping[str, Any]] = {}
    broken: list[dict[str, Any]] = []
    for window in _read_windows(dataset, rows, processor, options, broken):
        if not columns:
            # Asked once a shard, on its first chats: the shortest ones may have no images.
            check_rows(model, [prompt for _, _, prompt in window[:PROBED_ROWS]], pad_token_id=pad_token_id)
        window.sort(key=lambda read: (read[2].num_tokens, read[0]))
        for start in range(0, len(window), options.batch_size):
            batch = window[start : start + options.batch_size]
            encoded = [prompt for _, _, prompt in batch]
            inputs = send_to_device(collate_prompts(encoded, pad_token_id=pad_token_id), next(model.parameters()).device)
            top = find_top_tokens(compute_teacher_states(model, inputs), options.top_k, vocabulary=vocabulary)
            lengths = [sum(map(sum, prompt.scored)) for prompt in encoded]
            for (index, row, prompt), ids, logps in zip(batch, top.ids.split(lengths), top.logps.split(lengths), strict=True):
                columns[index] = cache_teacher(row, prompt, ids, logps, vocabulary=vocabulary)
            advance(len(batch))
    return dict(sorted(columns.items())), broken


def _read_windows(
    dataset: Dataset, rows: range, processor: Any, options: CacheTeacherOptions, broken: list[dict[str, Any]]
) -> Iterator[list[_Read]]:
    """Read good rows, those of some batches at a time; broken ones are added to ``broken``, with their images where they were read."""
    good: list[_Read] = []
    for index in rows:
        raw, row = dataset[index], None
        try:
            row = read_chat(raw, index=index, image_root=options.image_root)
            good.append((index, row, encode_chat(processor, row, answer_end=options.answer_end, max_length=options.max_length)))
        except UserError as error:
            seen = {} if row is None else {TEACHER_IMAGES: digest_images(row.images)}
            broken.append({"index": index, "row_id": row_id(raw, index=index), "reason": str(error), **seen})
        if len(good) == WINDOW_BATCHES * options.batch_size:
            yield good
            # Images of one window at a time are held.
            good.clear()
    if good:
        yield good


def _write_shard(path: Path, dataset: Dataset, columns: Mapping[int, Mapping[str, Any]], fingerprint: str, storage: str) -> None:
    text = dict.fromkeys((TEACHER_TEXT, TEACHER_IMAGES, TEACHER_FINGERPRINT), Value("string"))
    features = {TOP_IDS: List(Value("int32")), TOP_LOGPS: List(Value(storage)), VOCABULARY: Value("int32"), **text}
    values = {name: [{**row, TEACHER_FINGERPRINT: fingerprint}[name] for row in columns.values()] for name in TEACHER_COLUMNS}
    # A rest of probability 0 in half precision: the smallest number that it has.
    smallest = np.finfo(storage).min
    values[TOP_LOGPS] = [np.maximum(logps, smallest).astype(storage) for logps in values[TOP_LOGPS]]
    own = Dataset.from_dict(values, features=Features(features))
    add_columns(dataset.select(list(columns)), {name: own.data.column(name) for name in features}).to_parquet(path)


def _is_good(path: Path, dataset: Dataset, image_root: Path | None) -> bool:
    """Whether no chat that could not be read can be read by now. A file whose images are other ones by now is refused.

    Embedded images can't be: the data files' hashes were compared.
    """
    if TEACHER_IMAGES not in pq.read_schema(path).names:
        raise UserError(f"{path} has no column {TEACHER_IMAGES}: an earlier version wrote it; choose another --out")
    if image_root is not None and pq.read_metadata(path).num_rows:
        for index, raw in enumerate(load_rows(path)):
            row = read_chat(raw, index=index, image_root=image_root)
            check_images(path, row.id, raw[TEACHER_IMAGES], row.images)
    unread = [line for line in read_lines([_broken_path(path.parent, int(path.stem))]) if TEACHER_IMAGES not in line]
    return image_root is None or not any(_can_read(dataset, line["index"], image_root) for line in unread)


def _can_read(dataset: Dataset, index: int, image_root: Path) -> bool:
    try:
        read_chat(dataset[index], index=index, image_root=image_root)
    except UserError:
        return False
    return True


def _broken_path(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.rejects"


def _read_broken(path: Path) -> list[tuple[str, str]]:
    return [(line["row_id"], line["reason"]) for line in read_lines([_broken_path(path.parent, int(path.stem))])]

"""Write a teacher's likeliest tokens beside chats, shard by shard: each file is written whole or not at all, and a stopped run goes on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from accelerate.utils import send_to_device
from datasets import Dataset, Features, List, Value
from tqdm import tqdm

from mmalign.data.datasets import load_rows
from mmalign.data.encode import EncodedPrompt, encode_chat
from mmalign.data.images import digest_images
from mmalign.data.rejects import Rejects
from mmalign.data.rows import CHAT_COLUMNS, ChatRow, check_columns, read_chat, row_id
from mmalign.difficulty.scoring import SHARD_SIZE
from mmalign.difficulty.shares import Share
from mmalign.engine.batch import collate_prompts
from mmalign.engine.distillation import TopTokens, compute_teacher_states, head_size
from mmalign.engine.probe import PROBED_ROWS, check_rows
from mmalign.engine.teacher_cache import FINGERPRINT, IMAGES, TEXT, TOP_IDS, TOP_LOGPS, VOCABULARY, cache_columns, find_top_tokens
from mmalign.errors import UserError
from mmalign.files import claim, whole
from mmalign.options.rows import AnswerEnd


@dataclass(frozen=True)
class TeacherCacheConfig:
    """What is kept, and how chats are read."""

    top_k: int = 64
    storage: Literal["float16", "float32"] = "float16"
    batch_size: int = 16
    max_length: int | None = None
    answer_end: AnswerEnd = "token"
    image_root: Path | None = None
    max_reject_share: float = 0.05

    def __post_init__(self) -> None:
        """Refuse to keep nothing.

        Raises:
            ValueError: If top_k is not positive.
        """
        if self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; expected 1 token or more, such as 64")


def write_teacher_cache(
    dataset: Dataset,
    load: Callable[[], tuple[Any, Any]],
    *,
    out: Path,
    reference: str,
    fingerprint: Mapping[str, Any],
    config: TeacherCacheConfig,
    share: Share = Share(),  # noqa: B008
) -> None:
    """Write ``out/data/*.parquet``: the good rows with the teacher's columns. Nothing is held in memory beyond a shard.

    Args:
        dataset: Chats.
        load: Loads the teacher and its processor; called only where something is left to write.
        out: Folder; other processes may write other shards into it.
        reference: Fingerprint of the teacher, kept in every row.
        fingerprint: What the cache is made from; a folder with another one is refused.
        config: Numbers kept, reading and batching.
        share: The part of the shards that is this process's.

    Raises:
        ValueError: If columns are missing, too many rows are broken, or ``out`` holds a cache of something else.
    """
    check_columns(dataset.column_names, CHAT_COLUMNS, what="the data set")
    settings = {
        "top_k": config.top_k,
        "storage": config.storage,
        "shard_size": SHARD_SIZE,
        "max_length": config.max_length,
        "answer_end": config.answer_end,
    }
    claim(out / "scoring.json", {**fingerprint, **settings}, what="another cache")
    (out / "data").mkdir(exist_ok=True)
    rejects = Rejects(
        out / f"rejects{'' if share.count == 1 else f'-{share.index + 1}-of-{share.count}'}.jsonl", max_share=config.max_reject_share
    )
    paths = share.take([out / "data" / f"{start:09d}.parquet" for start in range(0, len(dataset), SHARD_SIZE)])
    teacher: tuple[Any, Any] | None = None
    checked = False
    num_seen = 0
    for path in tqdm(paths, desc="asking the teacher", unit="shard", leave=False, disable=share.index > 0):
        indices = range(int(path.stem), min(int(path.stem) + SHARD_SIZE, len(dataset)))
        broken = path.with_suffix(".rejects")
        if not path.is_file():
            teacher = teacher or load()
            checked |= _write_shard(dataset, indices, teacher, path, broken, config, reference, check=not checked)
        else:
            _check_images(path, config)
        num_seen += len(indices)
        for line in broken.read_text(encoding="utf-8").splitlines():
            rejects.add(**json.loads(line))
        rejects.check(num_seen)
    rejects.check(num_seen, final=True)


def _check_images(path: Path, config: TeacherCacheConfig) -> None:
    """Refuse a file whose images are other ones by now. Embedded ones can't be: the data files' hashes were compared."""
    if IMAGES not in pq.read_schema(path).names:
        raise UserError(f"{path} has no column {IMAGES}: an earlier version wrote it; choose another --out")
    if config.image_root is None or pq.read_metadata(path).num_rows == 0:
        return
    for index, raw in enumerate(load_rows(path)):
        row = read_chat(raw, index=index, image_root=config.image_root)
        found = digest_images(row.images)
        if raw[IMAGES] != found:
            raise UserError(
                f"in {path} the teacher saw the images {raw[IMAGES] or 'none'} of row {row.id}, and they are {found or 'none'} now; remove "
                "the files of images that changed to have the teacher asked anew, or choose another --out"
            )


def _write_shard(
    dataset: Dataset,
    indices: range,
    teacher: tuple[Any, Any],
    path: Path,
    broken: Path,
    config: TeacherCacheConfig,
    reference: str,
    *,
    check: bool,
) -> bool:
    """Write one part of the cache. Returns whether the teacher read any row of it."""
    model, processor = teacher
    good: list[tuple[int, ChatRow, EncodedPrompt]] = []
    reasons: list[dict[str, str]] = []
    columns: list[dict[str, Any]] = []
    # Rows past a padding row of the head are no tokens.
    vocabulary = min(head_size(model), len(processor.tokenizer))
    if config.top_k >= vocabulary:
        raise UserError(f"top_k is {config.top_k} of {vocabulary} tokens; expected fewer")
    kept: list[int] = []
    for index in indices:
        raw = dataset[index]
        try:
            row = read_chat(raw, index=index, image_root=config.image_root)
            good.append((index, row, encode_chat(processor, row, answer_end=config.answer_end, max_length=config.max_length)))
        except UserError as error:
            reasons.append({"row_id": row_id(raw, index=index), "reason": str(error)})
        if len(good) == config.batch_size or (good and index == indices[-1]):
            if check and not kept:
                # Asked once of a teacher, on the first rows that it reads.
                check_rows(model, [prompt for _, _, prompt in good[:PROBED_ROWS]], pad_token_id=processor.tokenizer.pad_token_id)
            for (number, row, prompt), top in zip(good, _ask(model, processor, good, config.top_k, vocabulary), strict=True):
                columns.append(cache_columns(row, prompt, top, vocabulary=vocabulary, fingerprint=reference))
                kept.append(number)
            good = []
    features = {TOP_IDS: List(Value("int32")), TOP_LOGPS: List(Value(config.storage)), VOCABULARY: Value("int32")}
    features |= {TEXT: Value("string"), IMAGES: Value("string"), FINGERPRINT: Value("string")}
    lists = {name: [column[name] for column in columns] for name in features}
    # A rest of probability 0 in half precision: the smallest number that it has.
    limits = np.finfo(config.storage)
    lists[TOP_LOGPS] = [np.maximum(values, limits.min).astype(config.storage) for values in lists[TOP_LOGPS]]
    own = Dataset.from_dict(lists, features=Features(features))
    shard = dataset.select(kept)
    for name in features:
        shard = shard.remove_columns(name) if name in shard.column_names else shard
    for name, feature in features.items():
        shard = shard.add_column(name, own.data.column(name), feature=feature)
    broken.write_text("".join(json.dumps(line) + "\n" for line in reasons), encoding="utf-8")
    with whole(path) as partial:
        shard.to_parquet(partial)
    return bool(kept)


def _ask(model: Any, processor: Any, good: list[tuple[int, ChatRow, EncodedPrompt]], top_k: int, vocabulary: int) -> list[TopTokens]:
    encoded = [prompt for _, _, prompt in good]
    batch = send_to_device(collate_prompts(encoded, pad_token_id=processor.tokenizer.pad_token_id), next(model.parameters()).device)
    top = find_top_tokens(compute_teacher_states(model, batch), top_k, vocabulary=vocabulary)
    lengths = [sum(map(sum, prompt.scored)) for prompt in encoded]
    return [TopTokens(*parts) for parts in zip(top.ids.split(lengths), top.logps.split(lengths), strict=True)]

"""``mmalign sample-images``: pictures of captions, drawn token by token, in shards that may be stopped and split."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageFeature

from mmalign.data.datasets import hash_data_files, load_rows
from mmalign.data.pictures import CAPTION, CODES_OF, encode_caption, leave_caption_out, read_caption
from mmalign.data.rejects import Rejects
from mmalign.data.rows import check_columns, row_id
from mmalign.data.shards import Advance, Shards, parse_share, read_lines, split_among_processes, wait_for_all, write_lines
from mmalign.engine.choosing import Decoding, Greedy, Sampling, fold_in
from mmalign.engine.drawing import draw_pictures
from mmalign.engine.logps import unwrap
from mmalign.errors import UserError
from mmalign.files import SCORING, claimed
from mmalign.models.fingerprint import fingerprint_checkpoint
from mmalign.models.load import best_device, check_exists, load_mllm
from mmalign.models.picture_tokens import PictureTokens, find_picture_tokens
from mmalign.options.sample_images import DrawingOptions, SampleImagesOptions

SHARD = 64
"""Captions of a shard: what a stopped run draws again at most."""
_DRAWN = ("sample", "image", "codes", CODES_OF)


def run(options: SampleImagesOptions) -> None:
    """Write ``OUT/data/*.parquet``: a row for each picture, with its caption's columns, its tokens, and which tokenizer they are of.

    Raises:
        ValueError: If the model draws no pictures, too many captions are broken, or ``OUT`` holds pictures of something else.
    """
    check_exists(options.model, "config.json", "adapter_config.json")
    share = split_among_processes(parse_share(options.shard))
    dataset = load_rows(options.captions)
    check_columns(dataset.column_names, (CAPTION,), what=str(options.captions))
    drawing = {name: getattr(options, name) for name in DrawingOptions.__dataclass_fields__}
    record = {
        "data": hash_data_files(options.captions),
        "model": fingerprint_checkpoint(options.model, dtype=options.dtype),
        # Rounding depends on who is drawn together.
        "batch_size": options.batch_size,
        **drawing,
    }

    @functools.cache
    def load() -> tuple[Any, PictureTokens, Any]:
        model, processor = load_mllm(options.model, dtype=options.dtype)
        pictures = find_picture_tokens(unwrap(model), side=options.picture_side)
        if not pictures.decodes:
            raise UserError(f"transformers has no decoder of the picture tokens of {type(unwrap(model)).__name__}: nothing can be shown")
        return unwrap(model.to(best_device())), pictures, processor

    def write(rows: range, path: Path, advance: Advance) -> None:
        drawn, broken = _draw(*load(), dataset, rows, options, advance)
        write_lines(_broken_path(path.parent, rows.start), broken)
        _write_shard(path, dataset, drawn)

    shards = Shards(options.out / "data", len(dataset), SHARD, ".parquet")
    with claimed(options.out / SCORING, record, what="other pictures", shared=share.count > 1):
        done = shards.finish(write, label="drawing", share=share, unit="caption")
        rejects = Rejects(options.out / f"rejects{share.suffix}.jsonl", max_share=options.max_reject_share)
        shards.reject_broken(done, _read_broken, rejects)
    if wait_for_all():
        print(f"pictures of {len(dataset):,} captions, {options.samples} of each, saved in {shards.folder}")


def choose_decoding(options: DrawingOptions) -> Decoding:
    """The likeliest token, or one that is drawn."""
    if options.temperature == 0:
        return Greedy()
    return Sampling(options.temperature, top_p=options.top_p, top_k=options.top_k, answers=options.samples)


def _draw(
    model: Any, pictures: PictureTokens, processor: Any, dataset: Dataset, rows: range, options: SampleImagesOptions, advance: Advance
) -> tuple[list[tuple[int, Mapping[str, Any]]], list[dict[str, str]]]:
    """Return the number of each picture's caption with the picture's columns, and the reason of each broken caption."""
    good: list[tuple[int, list[int]]] = []
    broken: list[dict[str, str]] = []
    for index in rows:
        try:
            good.append((index, encode_caption(processor, read_caption(dataset[index]), pictures)))
        except UserError as error:
            broken.append({"row_id": row_id(dataset[index], index=index), "reason": str(error)})
    drawn: list[tuple[int, Mapping[str, Any]]] = []
    for start in range(0, len(good), options.batch_size):
        batch = good[start : start + options.batch_size]
        made = _draw_batch(model, pictures, processor, batch, options)
        drawn += [(index, made[number * options.samples + i]) for number, (index, _) in enumerate(batch) for i in range(options.samples)]
        advance(len(batch))
    return drawn, broken


def _draw_batch(
    model: Any, pictures: PictureTokens, processor: Any, batch: Sequence[tuple[int, list[int]]], options: DrawingOptions
) -> list[dict[str, Any]]:
    codes = draw_pictures(
        model,
        pictures,
        [ids for _, ids in batch],
        without=[leave_caption_out(processor, ids, pictures) for _, ids in batch],
        decoding=choose_decoding(options),
        seeds=fold_in(torch.tensor([index for index, _ in batch]), options.seed).tolist(),
        guidance=options.guidance,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    images, digest = pictures.show(processor, pictures.decode(codes)), pictures.tokenizer_digest()
    return [
        dict(zip(_DRAWN, (number % options.samples, image, ids, digest), strict=True))
        for number, (image, ids) in enumerate(zip(images, codes.tolist(), strict=True))
    ]


def _write_shard(path: Path, dataset: Dataset, drawn: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    shard = dataset.select([index for index, _ in drawn])
    shard = shard.remove_columns([name for name in _DRAWN if name in shard.column_names])
    own = Dataset.from_dict({name: [row[name] for _, row in drawn] for name in _DRAWN[1:]})
    own = own.cast_column("image", ImageFeature())
    shard = shard.add_column("sample", [row["sample"] for _, row in drawn])
    for name, feature in own.features.items():
        shard = shard.add_column(name, own.data.column(name), feature=feature)
    shard.to_parquet(path)


def _broken_path(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.rejects"


def _read_broken(path: Path) -> list[tuple[str, str]]:
    return [(line["row_id"], line["reason"]) for line in read_lines([_broken_path(path.parent, int(path.stem))])]

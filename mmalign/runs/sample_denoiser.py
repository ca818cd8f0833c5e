"""``mmalign sample-denoiser``: pictures of captions, in shards that are there whole or not at all."""

from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets import Image as ImageFeature

from mmalign.data.datasets import hash_data_files, load_rows
from mmalign.data.pictures import read_caption
from mmalign.data.rows import check_columns
from mmalign.data.shards import Advance, Shards, parse_share, split_among_processes, wait_for_all
from mmalign.denoisers.draws import make_seed
from mmalign.denoisers.pipeline import TextToImage, fingerprint_pipeline, load_pipeline
from mmalign.denoisers.sampling import sample_pictures
from mmalign.errors import UserError
from mmalign.files import claim, whole
from mmalign.models.load import best_device
from mmalign.options.denoisers import SampleDenoiserOptions
from mmalign.worlds.render import to_png

SAMPLES, RECORD = "samples.parquet", "sampling.json"
SHARD_ROWS = 32
LISTS = Features({"caption": Value("string"), "images": List(ImageFeature())})
PAIRS = Features({"caption": Value("string"), "image_chosen": ImageFeature(), "image_rejected": ImageFeature()})
# What changes no picture.
_WITHOUT_EFFECT = ("data", "model", "out", "shard")


def run(options: SampleDenoiserOptions) -> Path | None:
    """Make the pictures that are missing, and join them; None where that is left to another process or command.

    Raises:
        ValueError: If the data or the pipeline can't be used, or ``out`` holds other samples.
    """
    dataset = load_rows(options.data)
    check_columns(dataset.column_names, ("caption", "image") if options.pairs else ("caption",), what=str(options.data))
    check_captions(dataset, options.data)
    part = parse_share(options.shard)
    settings = {name: value for name, value in vars(options).items() if name not in _WITHOUT_EFFECT}
    record = {**settings, "data": hash_data_files(options.data), "model": fingerprint_pipeline(options.model)}
    claim(options.out / RECORD, record, what="other samples")
    shards = Shards(options.out / "shards", len(dataset), SHARD_ROWS, suffix=".parquet")
    source = load_pipeline(options.model)
    source.to(best_device())

    def write(rows: range, path: Path, advance: Advance) -> None:
        write_shard(options, source, dataset.select(rows), path, first=rows.start)

    list(shards.finish(write, label="drawing", share=split_among_processes(part)))
    if not wait_for_all():
        return None
    if part.count > 1:
        print(f"part {options.shard} is drawn; when all parts are, run the same command without --shard: it joins them")
        return None
    joined = concatenate_datasets([Dataset.from_parquet(str(path), cache_dir=str(options.out / "cache")) for path in shards.paths()])
    with whole(options.out / SAMPLES) as partial:
        joined.to_parquet(partial)
    print(f"{len(dataset) * options.num_samples:,} pictures of {len(dataset):,} captions saved in {options.out / SAMPLES}")
    return options.out / SAMPLES


def check_captions(dataset: Dataset, source: Path) -> None:
    """Read every caption.

    Raises:
        ValueError: With the row, if one is no text.
    """
    for number, raw in enumerate(dataset.select_columns(["caption"])):
        try:
            read_caption(raw)
        except UserError as error:
            raise UserError(f"row {number} of {source}: {error}") from error


def write_shard(options: SampleDenoiserOptions, source: TextToImage, rows: Dataset, path: Path, *, first: int) -> None:
    """Draw the pictures of some rows and write them."""
    wanted = [(row, number) for row in range(len(rows)) for number in range(options.num_samples)]
    made: list[list[dict[str, Any]]] = [[] for _ in rows]
    for start in range(0, len(wanted), options.batch_size):
        batch = wanted[start : start + options.batch_size]
        pictures = sample_pictures(
            source,
            [rows[row]["caption"] for row, _ in batch],
            [make_seed(options.seed, first + row, number) for row, number in batch],
            steps=options.sampling_steps,
            guidance=options.guidance,
            side=options.resolution or source.resolution,
        )
        for (row, _), picture in zip(batch, pictures, strict=True):
            made[row].append({"bytes": to_png(picture), "path": None})
    captions = [row["caption"] for row in rows]
    if options.pairs:
        found = [
            {"caption": caption, "image_chosen": rows[row]["image"], "image_rejected": picture}
            for row, caption in enumerate(captions)
            for picture in made[row]
        ]
        Dataset.from_list(found, features=PAIRS).to_parquet(path)
    else:
        Dataset.from_dict({"caption": captions, "images": made}, features=LISTS).to_parquet(path)

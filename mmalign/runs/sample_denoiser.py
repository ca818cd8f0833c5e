"""``mmalign sample-denoiser``: pictures of captions, in shards that are there whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image
from pyarrow.compute import list_value_length
from pyarrow.parquet import read_metadata

from mmalign.data.datasets import hash_data_files, load_rows, read_parquet, refuse_overwriting
from mmalign.data.pictures import read_caption
from mmalign.data.rows import check_columns
from mmalign.data.shards import Advance, Shards, parse_share, split_among_processes, wait_for_all
from mmalign.denoisers.draws import make_seed
from mmalign.denoisers.paths import SampledPath, pack_path
from mmalign.denoisers.pipeline import TextToImage, fingerprint_pipeline, load_pipeline
from mmalign.denoisers.sampling import sample_paths, sample_pictures
from mmalign.errors import UserError
from mmalign.files import claimed, whole
from mmalign.models.load import best_device
from mmalign.options.denoisers import SampleDenoiserOptions
from mmalign.worlds.render import to_png

SAMPLES, RECORD = "samples.parquet", "sampling.json"
SHARD_ROWS = 32
DRAWN = {"images": List(ImageFeature()), "paths": List(Value("binary"))}
"""Columns that are added to those of a caption."""
# What changes no picture.
_WITHOUT_EFFECT = ("data", "model", "out", "shard")


def run(options: SampleDenoiserOptions) -> Path | None:
    """Make the pictures that are missing, and join them; None where that is left to another process or command.

    Raises:
        ValueError: If the data or the pipeline can't be used, or ``out`` holds other samples.
    """
    refuse_overwriting(options.data, options.out / SAMPLES)
    dataset = load_rows(options.data)
    check_columns(dataset.column_names, ("caption", "image") if options.pairs else ("caption",), what=str(options.data))
    check_captions(dataset, options.data)
    part = parse_share(options.shard)
    settings = {name: value for name, value in vars(options).items() if name not in _WITHOUT_EFFECT}
    record = {**settings, "data": hash_data_files(options.data), "model": fingerprint_pipeline(options.model)}
    shards = Shards(options.out / "shards", len(dataset), SHARD_ROWS, suffix=".parquet")
    source = load_pipeline(options.model)
    source.to(best_device())
    source.tell_cut(dataset["caption"][:])

    def write(rows: range, path: Path, advance: Advance) -> None:
        write_shard(options, source, dataset.select(rows), path, first=rows.start)

    share = split_among_processes(part)
    with claimed(options.out / RECORD, record, what="other samples", shared=share.count > 1):
        list(shards.finish(write, label="drawing", share=share))
    if not wait_for_all():
        return None
    if part.count > 1:
        print(f"part {options.shard} is drawn; when all parts are, run the same command without --shard: it joins them")
        return None
    count = join(options, shards.paths())
    if count < (asked := len(dataset) * options.num_samples):
        print(f"{asked - count:,} of {asked:,} pictures were made black by the pipeline's safety checker, and are left out")
    print(f"{count:,} pictures of {len(dataset):,} captions saved in {options.out / SAMPLES}")
    return options.out / SAMPLES


def join(options: SampleDenoiserOptions, shards: Sequence[Path]) -> int:
    """Write the shards as one file; returns how many pictures there are.

    Raises:
        ValueError: If there are none.
    """
    held = [path for path in shards if read_metadata(path).num_rows]
    if not held:
        raise UserError(f"the safety checker of {options.model} made all pictures black, and there is nothing to save; change the captions")
    joined = concatenate_datasets([read_parquet(path, cache=options.out / "cache") for path in held])
    with whole(options.out / SAMPLES) as partial:
        joined.to_parquet(partial)
    return len(joined) if options.pairs else list_value_length(joined.data.column("images")).to_numpy().sum()


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
    captions = rows["caption"]
    made: list[list[Any]] = [[] for _ in rows]
    paths: list[list[bytes]] = [[] for _ in rows]
    for start in range(0, len(wanted), options.batch_size):
        batch = wanted[start : start + options.batch_size]
        drawn = draw(options, source, [captions[row] for row, _ in batch], [(first + row, number) for row, number in batch])
        for (row, _), (picture, own) in zip(batch, drawn, strict=True):
            if picture is None:
                continue
            made[row].append({"bytes": to_png(picture), "path": None})
            paths[row] += [] if own is None else [pack_path(own)]
    columns = {"images": made, "paths": paths} if options.paths else {"images": made}
    (make_pairs(rows, made) if options.pairs else add_drawn(rows, columns)).to_parquet(path)


def make_pairs(rows: Dataset, made: Sequence[Sequence[Mapping[str, Any]]]) -> Dataset:
    """Set each row's own picture, as it stands there, against those that were made."""
    kinds = Features({"caption": Value("string"), "image_chosen": rows.features["image"], "image_rejected": ImageFeature()})
    pairs = [(row["caption"], row["image"], picture) for row, pictures in zip(rows, made, strict=True) for picture in pictures]
    return Dataset.from_dict({name: [pair[number] for pair in pairs] for number, name in enumerate(kinds)}, features=kinds)


def add_drawn(rows: Dataset, columns: Mapping[str, Sequence[Sequence[Any]]]) -> Dataset:
    """Add the columns of what was drawn, and leave rows out for which there is nothing."""
    shown = [row for row, pictures in enumerate(columns["images"]) if pictures]
    kept = rows.select(shown).remove_columns([name for name in DRAWN if name in rows.column_names])
    held = {name: [values[row] for row in shown] for name, values in columns.items()}
    drawn = Dataset.from_dict(held, features=Features({name: DRAWN[name] for name in held}))
    return concatenate_datasets([kept, drawn], axis=1)


def draw(
    options: SampleDenoiserOptions, source: TextToImage, captions: Sequence[str], places: Sequence[tuple[int, int]]
) -> Sequence[tuple[Image.Image | None, SampledPath | None]]:
    """Make pictures, None for black ones, with their paths where those are asked for.

    Args:
        options: How.
        source: The pipeline.
        captions: A picture each.
        places: Numbers of each picture's row and sample.
    """
    how: dict[str, Any] = {"steps": options.sampling_steps, "guidance": options.guidance, "side": source.choose_side(options.resolution)}
    seeds = [make_seed(options.seed, *place) for place in places]
    if not options.paths:
        return [(picture, None) for picture in sample_pictures(source, captions, seeds, **how)]
    # All paths of a caption begin at one noise, as D3PO has it.
    return sample_paths(source, captions, [make_seed(options.seed, row) for row, _ in places], seeds, **how)

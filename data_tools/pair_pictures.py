"""Make pairs or lists of pictures from what a model drew: against the data's own pictures, or scored.

    python data_tools/pair_pictures.py drawn/data --data drawings.parquet --out pairs.parquet
    mmalign train preference --pictures --model policy/ --data pairs.parquet --objective ddo --out aligned
    python data_tools/pair_pictures.py drawn/data --scorer reader:reader/ --out lists.parquet
    mmalign train listwise --pictures --model policy/ --data lists.parquet --objective rank_dpo --out aligned
    python data_tools/pair_pictures.py paths/samples.parquet --scorer reader:reader/ --out scored.parquet
    mmalign train image-preference --model pipeline/ --data scored.parquet --noise path --objective clipped_dpo --out aligned

SAMPLES are those of mmalign sample-images, or of mmalign sample-denoiser. With --data a pair for each sample of sample-images: the picture
of the row with its id is chosen, the sample rejected, as DDO's self-play has it (arXiv:2503.01103). With --scorer a list for each caption:
reader:DIR gives the shares of quarters that show what the column objects names, likelihood:DIR the reader's log-probability of that,
function:FILE.py:NAME what NAME(caption, pictures, row) returns, a number for each picture. Lists whose samples all have one score are left
out. Samples keep their codes or paths, so that what is trained on is what was drawn.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from data_tools.program import run_program
from mmalign.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PairPicturesOptions:
    """Options of ``pair_pictures.py``."""

    samples: Path = field(metadata={"positional": True})
    """what mmalign sample-images wrote (its data/), or mmalign sample-denoiser (samples.parquet)"""
    out: Path
    """Parquet file of the pairs or lists"""
    data: Path | None = None
    """pairs: rows with id and image, the pictures that are chosen"""
    scorer: str | None = None
    """lists: reader:DIR, likelihood:DIR or function:FILE.py:NAME"""


def run(options: PairPicturesOptions) -> None:
    """Write the file.

    Raises:
        ValueError: If both or neither source of preferences is given, or rows lack what is needed.
    """
    from data_tools.picture_lists import read_lists
    from data_tools.picture_rows import write_picture_rows
    from data_tools.picture_scores import build_scorer
    from mmalign.data.datasets import load_rows
    from mmalign.data.rows import check_columns

    if (options.data is None) == (options.scorer is None):
        raise UserError("--data makes pairs and --scorer makes lists; give one of them")
    samples = load_rows(options.samples)
    if options.scorer is not None:
        lists = read_lists(samples, build_scorer(options.scorer), what=str(options.samples))
        made: Iterator[dict[str, Any]] = (row for row in lists if len(set(row["scores"])) > 1)
    else:
        check_columns(samples.column_names, ("id", "caption", "sample", "image", "codes", "codes_of"), what=str(options.samples))
        assert options.data is not None
        made = _make_pairs(samples, options.data)
    first = next(made, None)
    if first is None:
        raise UserError(f"{options.samples} makes no rows: every caption's samples have one score")
    # Rows of sample-denoiser keep their columns; the others are made anew.
    kept = samples.features if "images" in samples.column_names else None
    count = write_picture_rows(options.out, chain([first], made), features=kept)
    print(f"{count:,} rows of {len(samples):,} samples in {options.out}")


def _make_pairs(samples: Iterable[Mapping[str, Any]], source: Path) -> Iterator[dict[str, Any]]:
    from mmalign.data.datasets import load_rows
    from mmalign.data.rows import check_columns

    data = load_rows(source)
    check_columns(data.column_names, ("id", "image"), what=str(source))
    own: dict[str, int] = {}
    for number, name in enumerate(data["id"]):
        first = own.setdefault(str(name), number)
        if first < number and data[first]["image"] != data[number]["image"]:
            raise UserError(
                f"rows {first} and {number} of {source} have the id {name!r} and different pictures, of which a pair takes the one with "
                "its sample's id; give each picture an id of its own and sample again"
            )
    for sample in samples:
        if str(sample["id"]) not in own:
            raise UserError(
                f"{source} has no row with id {sample['id']!r}, of which there is a sample; give the data that was sampled from"
            )
        row = {"id": f"{sample['id']}-{sample['sample']}", "caption": sample["caption"]}
        row |= {"image_chosen": data[own[str(sample["id"])]]["image"], "image_rejected": sample["image"]}
        yield {**row, "codes_rejected": sample["codes"], "codes_of": sample["codes_of"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, PairPicturesOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())

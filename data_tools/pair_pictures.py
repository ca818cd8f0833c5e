"""Make pairs or lists of pictures from what mmalign sample-images drew: against the data's own pictures, or scored by a reader.

    python data_tools/pair_pictures.py drawn/data --data drawings.parquet --out pairs.parquet
    mmalign train preference --pictures --model policy/ --data pairs.parquet --objective ddo --out aligned
    python data_tools/pair_pictures.py drawn/data --reader reader/ --out lists.parquet
    mmalign train listwise --pictures --model policy/ --data lists.parquet --objective rank_dpo --out aligned

With --data a pair for each sample: the picture of the row with its id is chosen, the sample rejected, as DDO's self-play has it
(arXiv:2503.01103). With --reader a list for each caption: scores are the shares of quarters that show what the column objects names; lists
whose samples all have one score are left out. Samples keep their codes, so that what is trained on is what was drawn.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.program import run_program
from mmalign.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PairPicturesOptions:
    """Options of ``pair_pictures.py``."""

    samples: Path = field(metadata={"positional": True})
    """folder that mmalign sample-images wrote (its data/)"""
    out: Path
    """Parquet file of the pairs or lists"""
    data: Path | None = None
    """pairs: rows with id and image, the pictures that are chosen"""
    reader: Path | None = None
    """lists: reader of drawings that scores"""


def run(options: PairPicturesOptions) -> None:
    """Write the file.

    Raises:
        ValueError: If both or neither source of preferences is given, or rows lack what is needed.
    """
    from datasets import Dataset, List
    from datasets import Image as ImageFeature

    from mmalign.data.datasets import load_rows
    from mmalign.data.rows import check_columns
    from mmalign.files import whole

    if (options.data is None) == (options.reader is None):
        raise UserError("--data makes pairs and --reader makes lists; give one of them")
    samples = load_rows(options.samples)
    needed = ("id", "caption", "sample", "image", "codes", "codes_of", *(() if options.reader is None else ("objects",)))
    check_columns(samples.column_names, needed, what=str(options.samples))
    made = list(_make_pairs(samples, options.data) if options.data is not None else _make_lists(samples, options.reader))
    if not made:
        raise UserError(f"{options.samples} makes no rows: every caption's samples have one score")
    rows = Dataset.from_list(made)
    for name, feature in (("image_chosen", ImageFeature()), ("image_rejected", ImageFeature()), ("images_responses", List(ImageFeature()))):
        rows = rows.cast_column(name, feature) if name in rows.column_names else rows
    with whole(options.out) as partial:
        rows.to_parquet(partial)
    print(f"{len(rows):,} rows of {len(samples):,} samples in {options.out}")


def _make_pairs(samples: Iterable[Mapping[str, Any]], source: Path) -> Iterator[dict[str, Any]]:
    from mmalign.data.datasets import load_rows
    from mmalign.data.rows import check_columns

    data = load_rows(source)
    check_columns(data.column_names, ("id", "image"), what=str(source))
    own = {str(name): number for number, name in enumerate(data["id"])}
    for sample in samples:
        if str(sample["id"]) not in own:
            raise UserError(
                f"{source} has no row with id {sample['id']!r}, of which there is a sample; give the data that was sampled from"
            )
        row = {"id": f"{sample['id']}-{sample['sample']}", "caption": sample["caption"]}
        row |= {"image_chosen": data[own[str(sample["id"])]]["image"], "image_rejected": sample["image"]}
        yield {**row, "codes_rejected": sample["codes"], "codes_of": sample["codes_of"]}


def _make_lists(samples: Iterable[Mapping[str, Any]], folder: Path | None) -> Iterator[dict[str, Any]]:
    from mmalign.pictures.metrics import quarters_right
    from mmalign.pictures.reader import load_reader, read_truth

    assert folder is not None
    rows = list(samples)
    pictures, named = read_truth(rows)
    scores = [quarters_right(one, other) for one, other in zip(load_reader(folder).read(pictures), named, strict=True)]
    for group in _by_caption(rows):
        own = [scores[number] for number in group]
        if len(set(own)) > 1:
            first = rows[group[0]]
            drawn = {"images_responses": [rows[i]["image"] for i in group], "codes_responses": [rows[i]["codes"] for i in group]}
            yield {"id": str(first["id"]), "caption": first["caption"], **drawn, "codes_of": first["codes_of"], "scores": own}


def _by_caption(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(str(row["id"]), []).append(number)
    return list(groups.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, PairPicturesOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())

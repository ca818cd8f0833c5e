"""Train the reader of the embedded world's drawings, which says what kind and colour stands in each quarter.

    mmalign world build --num-drawings 4000 --image-size 32 --max-objects 3 --out world
    python data_tools/train_reader.py world/drawings/drawings.parquet --out reader
    mmalign evaluate images drawn/data --reader reader --out results

The last --held-out rows are not trained on: how many of them are read right in all four quarters is printed and kept in reader.json.

Cost: about twenty seconds of one core for 4,000 drawings.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.program import run_program
from mmalign.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ReaderOptions:
    """Options of ``train_reader.py``."""

    drawings: Path = field(metadata={"positional": True})
    """rows with image and objects, as mmalign world build --num-drawings writes them"""
    out: Path
    """folder of the reader"""
    held_out: int = 400
    """rows that are read to see how good the reader is"""
    epochs: int = 15
    """passes over the others"""
    seed: int = 0
    """of weights, order and noise"""


def run(options: ReaderOptions) -> None:
    """Train, measure, save.

    Raises:
        ValueError: If the rows are too few, or there is a reader already.
    """
    from mmalign.data.datasets import hash_data_files, load_rows
    from mmalign.data.rows import check_columns
    from mmalign.pictures.reader import read_truth, save_reader, train_reader

    if (options.out / "reader.json").is_file():
        raise UserError(f"{options.out} holds a reader already; choose another --out")
    rows = load_rows(options.drawings)
    check_columns(rows.column_names, ("image", "objects"), what=str(options.drawings))
    if len(rows) <= options.held_out:
        raise UserError(f"{options.drawings} has {len(rows)} rows, of which {options.held_out} are held out; give more, or less --held-out")
    pictures, objects = read_truth(rows)
    sizes = [1 + max(item[place] for row in objects for item in row) for place in (0, 1)]
    split = len(rows) - options.held_out
    reader = train_reader(
        pictures[:split], objects[:split], num_kinds=sizes[0], num_colours=sizes[1], epochs=options.epochs, seed=options.seed
    )
    found = reader.read(pictures[split:])
    right = sum(set(one) == set(other) for one, other in zip(found, objects[split:], strict=True)) / max(1, options.held_out)
    save_reader(reader, options.out, {"data": hash_data_files(options.drawings), "all_right": right, "held_out": options.held_out})
    print(f"{right:.1%} of {options.held_out} held-out drawings are read right in all four quarters; reader saved in {options.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, ReaderOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())

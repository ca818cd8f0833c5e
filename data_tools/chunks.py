"""Work of the builders in chunks: stopped at any time, it is resumed to the same bytes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.data.shards import Advance, Shards, write_lines
from mmalign.errors import UserError
from mmalign.files import claimed

Work = Callable[[range], Sequence[Mapping[str, Any]]]


def run_chunks(num_rows: int, work: Work, *, out: Path, fingerprint: Mapping[str, Any], size: int, label: str) -> list[Path]:
    """Do what is not done yet.

    Args:
        num_rows: Rows in all.
        work: Makes the lines of the rows in a range.
        out: Folder of the chunks, and of ``build.json`` with the fingerprint.
        fingerprint: All that decides the lines; a folder with another one is refused.
        size: Rows per chunk.
        label: Name of the progress bar.

    Returns:
        The chunks in order, JSON lines each.

    Raises:
        ValueError: If ``size`` is below 1, or ``out`` holds something else.
    """
    if size < 1:
        raise UserError(f"batch_size is {size}; expected at least 1")

    def write(rows: range, path: Path, advance: Advance) -> None:
        write_lines(path, work(rows))

    with claimed(out / "build.json", {**fingerprint, "rows": num_rows, "chunk": size}, what="another run"):
        return list(Shards(out / "chunks", num_rows, size).finish(write, label=label))


def chunk_seed(seed: int, start: int) -> int:
    """Seed a chunk by its place, so that what it draws depends on no other chunk.

    Args:
        seed: The run's own.
        start: First row of the chunk.

    Raises:
        ValueError: If the seed is out of range.
    """
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; expected 0 to {2**31 - 1}")
    return seed * 2**32 + start

"""Work that may be killed at any time: done in chunks that are written whole or not at all.

A chunk holds always the same rows, so a run that goes on makes the same batches as one that was never stopped, and the same bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmalign.errors import UserError
from mmalign.files import claim, write_whole

Work = Callable[[range], Sequence[Mapping[str, Any]]]


def run_chunks(num_rows: int, work: Work, *, out: Path, fingerprint: Mapping[str, Any], size: int, label: str) -> list[Path]:
    """Do what is not done yet.

    Args:
        num_rows: Rows in all.
        work: Makes the lines of the rows in a range.
        out: Folder of the chunks, and of ``build.json`` with the fingerprint.
        fingerprint: All that decides the lines; a folder with another one is refused.
        size: Rows a chunk.
        label: Name of the progress bar.

    Returns:
        The chunks in order, JSON lines each.

    Raises:
        ValueError: If ``size`` is below 1, or ``out`` holds something else.
    """
    if size < 1:
        raise UserError(f"batch_size is {size}; expected at least 1")
    claim(out / "build.json", {**fingerprint, "rows": num_rows, "chunk": size}, what="another run")
    (out / "chunks").mkdir(exist_ok=True)
    paths = []
    with tqdm(total=num_rows, desc=label, unit="row", leave=False) as bar:
        for start in range(0, num_rows, size):
            rows = range(start, min(start + size, num_rows))
            path = out / "chunks" / f"{start:09d}.jsonl"
            if not path.is_file():
                write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in work(rows)))
            bar.update(len(rows))
            paths.append(path)
    return paths


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


def read_chunks(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the lines of all chunks."""
    for path in paths:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

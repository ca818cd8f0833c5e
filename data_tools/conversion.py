"""From a public set's files to checked rows: what the converters share. Rows stream through, so memory stays the same whatever the size."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.options.base import Options


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(Options):
    """Options of every converter."""

    set: str = field(metadata={"positional": True})
    """whose files they are"""
    files: list[Path] = field(metadata={"positional": True})
    """the set's files, or folders of them"""
    out: Path
    """folder of the rows (pairs, lists or chats/*.parquet), rejects.jsonl and conversion.json"""
    image_root: Path | None = None
    """folder that image paths in the files start from"""
    embed_images: bool = False
    """put images that are paths into the Parquet files as bytes"""
    max_reject_share: float = 0.05
    """stop if more than this share of rows is broken"""
    shard_rows: int = 2000
    """most rows a Parquet file"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "shard_rows")
        self.refuse_no_share("max_reject_share")


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a program makes of a record; rows have ``id``, ``columns()`` and ``image_columns()``."""

    kind: str
    """What the rows are: the folder's and the files' name."""
    read: Callable[[Mapping[str, Any], str], Sequence[Any]]
    """A record, and the id of one that has none, to rows."""
    check: Callable[..., object]
    """Checks a row as training will; the columns of its images are given by name, decoded."""
    nothing: str | None = None
    """Name of the count of records that make no row; None where each makes one."""
    left_out: Mapping[str, Callable[[Sequence[Any]], bool]] = field(default_factory=dict)
    """Names of further counts, with what tells that a record's rows are left out."""
    finish: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Last change of a row before it is written."""


def convert_files(options: ConversionOptions, form: Form, settings: Mapping[str, Any]) -> None:
    """Convert all files to ``OUT.partial``, which becomes ``OUT`` when it is whole.

    Args:
        options: Of the program.
        form: What it makes of a record.
        settings: Its own options, for the record of the conversion.

    Raises:
        ValueError: If ``OUT`` exists, too many rows are broken, or none is left.
    """
    from data_tools.records import list_files
    from data_tools.row_files import RowWriter
    from mmalign.data.rejects import Rejects

    files = list_files(options.files)
    if options.out.exists():
        raise UserError(f"{options.out} exists; choose another --out, or remove it")
    partial = options.out.with_name(options.out.name + ".partial")
    writer = RowWriter(partial / form.kind, name=form.kind, shard_rows=options.shard_rows)
    for stale in partial.glob("*/*.parquet"):
        stale.unlink()
    rejects = Rejects(partial / "rejects.jsonl", max_share=options.max_reject_share)
    counts = _convert(options, form, files, writer, rejects)
    writer.close()
    if not writer.num_rows:
        raise UserError(f"no {form.kind[:-1]} in {len(files)} files ({_told(counts)}); the reasons are in {rejects.path}")
    _write_record(options, files, partial, {**settings, "counts": {**counts, form.kind: writer.num_rows, "rejected": rejects.num_rejected}})
    partial.rename(options.out)
    print(f"{writer.num_rows:,} {form.kind} in {options.out / form.kind}, {rejects.num_rejected:,} rows rejected; {_told(counts)}")


def _convert(options: ConversionOptions, form: Form, files: Sequence[Path], writer: Any, rejects: Any) -> dict[str, int]:
    from tqdm import tqdm

    from data_tools.records import read_records

    counts = dict.fromkeys(("records", *([form.nothing] if form.nothing else []), *form.left_out), 0)
    seen = 0
    for path in files:
        for record in tqdm(read_records(path), desc=path.name, unit="record", leave=False):
            counts["records"] += 1
            try:
                if record.fault:
                    raise UserError(record.fault)
                rows = form.read(record.value, record.where)
                if form.nothing:
                    counts[form.nothing] += not rows
                left_out = [name for name, tells in form.left_out.items() if rows and tells(rows)]
                if left_out:
                    counts[left_out[0]] += 1
                    continue
                decoded = _load_images(rows, options.image_root)
            except UserError as error:
                seen += 1
                rejects.add(record.where, str(error))
                rejects.check(seen)
                continue
            for row in rows:
                seen += 1
                try:
                    writer.add(_checked_row(row, decoded, form, options))
                except UserError as error:
                    rejects.add(row.id, str(error))
                    rejects.check(seen)
    rejects.check(seen, final=True)
    return counts


def _load_images(rows: Sequence[Any], root: Path | None) -> dict[int, Any]:
    """Decode a record's images once for all its rows: by identity, as the rows share them."""
    from mmalign.data.images import load_image

    values = {id(value): value for row in rows for held in row.image_columns().values() for value in held}
    return {key: load_image(value, root=root) for key, value in values.items()}


def _checked_row(row: Any, decoded: Mapping[int, Any], form: Form, options: ConversionOptions) -> Mapping[str, Any]:
    from data_tools.row_files import written_row

    form.check(row, **{name: [decoded[id(value)] for value in held] for name, held in row.image_columns().items()})
    return form.finish(written_row(row, root=options.image_root, embed=options.embed_images))


def _write_record(options: ConversionOptions, files: Sequence[Path], folder: Path, settings: Mapping[str, Any]) -> None:
    from mmalign import __version__
    from mmalign.files import hash_file

    content = {
        "set": options.set,
        "files": {path.name: hash_file(path) for path in files},
        "image_root": None if options.image_root is None else str(options.image_root),
        "embed_images": options.embed_images,
        **settings,
        "mmalign": __version__,
    }
    (folder / "conversion.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items())

"""The hub's Parquet: rows, and the pictures that they hold in columns of bytes and path, as ``datasets`` writes them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import ParquetFile

from mmalign.data.git_lfs import refuse_pointer
from mmalign.errors import UserError


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a Parquet file; of columns with pictures only the name.

    Raises:
        ValueError: If the file is missing, a Git LFS pointer, or no Parquet.
    """
    with _open(path) as file:
        pictures = _picture_columns(file)
        binary = (pyarrow.types.is_binary, pyarrow.types.is_large_binary)
        others = [field.name for field in file.schema_arrow if not any(is_kind(field.type) for is_kind in binary)]
        # A struct's field is read by its path: the pictures' bytes stay on disk.
        columns = [f"{name}.path" if name in pictures else name for name in others]
        rows: list[dict[str, Any]] = file.read(columns=columns).to_pylist()
    return [{key: value["path"] if key in pictures and value else value for key, value in row.items()} for row in rows]


def has_pictures(path: Path, column: str = "image") -> bool:
    """Whether a file is Parquet with the pictures themselves in a column."""
    if path.suffix != ".parquet":
        return False
    with _open(path) as file:
        return column in _picture_columns(file)


def read_pictures(path: Path, column: str = "image") -> list[bytes | None]:
    """Read the bytes of a column, row by row; None where a row has none. Raises as ``read_table``."""
    with _open(path) as file:
        pictures = file.read(columns=[column]).column(column).to_pylist()
    return [picture["bytes"] if picture else None for picture in pictures]


def write_pictures(names: Mapping[Path, Sequence[str]], folder: Path, column: str = "image") -> bool:
    """Write the pictures of Parquet files, as they are stored.

    Args:
        names: What each file's rows call their image, row by row; an empty name is passed over, and so is a file without pictures.
        folder: Where to.
        column: Which of their columns holds them.

    Returns:
        Whether there were any.

    Raises:
        ValueError: If a name leads out of the folder.
    """
    files = [file for file in names if has_pictures(file, column)]
    for file in files:
        for name, picture in zip(names[file], read_pictures(file, column), strict=True):
            path = folder / name
            if not name or picture is None or path.is_file():
                continue
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{file}: an image is named {name!r}, which lies outside {folder}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
    return any(any(names[file]) for file in files)


@contextmanager
def _open(path: Path) -> Iterator[ParquetFile]:
    """Open a file, and name it where Arrow finds it damaged."""
    if not path.is_file():
        raise UserError(f"file not found: {path}")
    refuse_pointer(path)
    try:
        with ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as Parquet: {error}") from error


def _picture_columns(file: ParquetFile) -> list[str]:
    structs = [field for field in file.schema_arrow if pyarrow.types.is_struct(field.type)]
    return [field.name for field in structs if min(field.type.get_field_index(part) for part in ("bytes", "path")) >= 0]

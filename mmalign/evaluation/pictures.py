"""Pictures that a benchmark's Parquet files hold, written as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.errors import UserError
from mmalign.evaluation.rows import has_pictures, read_pictures


def write_pictures(files: Sequence[Path], names: Mapping[Path, Sequence[str]], folder: Path) -> bool:
    """Write the pictures of Parquet files, as they are stored.

    Args:
        files: Of the data; those that are no Parquet with pictures are passed over.
        names: What each file's rows call their image, row by row; an empty name is passed over.
        folder: Where to.

    Returns:
        Whether there were any.

    Raises:
        ValueError: If a name leads out of the folder.
    """
    found = False
    for file in files:
        if not has_pictures(file):
            continue
        for name, picture in zip(names[file], read_pictures(file), strict=True):
            path = folder / name
            if not name or picture is None or path.is_file():
                continue
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{file}: an image is named {name!r}, which lies outside {folder}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
            found = True
        found = found or any(names[file])
    return found

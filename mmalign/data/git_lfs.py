"""Git LFS: a clone without ``git lfs pull`` holds, in place of each large file, a pointer of three lines."""

from pathlib import Path

from mmalign.errors import UserError

_MARK = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path) -> None:
    """Refuse a file that is only the pointer to its contents.

    Raises:
        ValueError: If it is one; a file that can't be opened is left to its reader.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(_MARK)) == _MARK:
            raise UserError(f"{path} is a Git LFS pointer, not the file itself: run 'git lfs pull' in its repository")

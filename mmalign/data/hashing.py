"""Content hashes of files, for records of what a result was made from."""

import hashlib
from pathlib import Path


def hash_file(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files that are there whole or not at all, whatever moment a kill comes at."""

import os
import socket
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file under another name, flush it to the disk, and rename it."""
    # Of its own name: several processes may write one file at once, on one machine or on several.
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)

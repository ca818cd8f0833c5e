"""Files that are there whole or not at all, whatever moment a kill comes at."""

import os
import socket
from pathlib import Path


def write_whole(path: Path, text: str, *, many_writers: bool = False) -> None:
    """Write a text file under another name, flush it to the disk, and rename it.

    Args:
        path: The file; one that is there is replaced.
        text: Its content.
        many_writers: Whether several processes, on one machine or on several, may write it at once: each then uses a name of its own,
            which a kill leaves behind. Otherwise the next writer takes the same name.
    """
    writer = f".{socket.gethostname()}-{os.getpid()}" if many_writers else ""
    partial = path.with_name(f"{path.name}{writer}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)

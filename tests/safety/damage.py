"""Damage that no reader may pass over: each kind of file, cut or filled with what it can't hold."""

import random
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[bytes], bytes]
DEEP = b"[" * 100_000


def cut(data: bytes) -> bytes:
    """A download or a copy that stopped half way."""
    return data[: len(data) // 2]


def fill(piece: bytes) -> Damage:
    """Put a piece into the middle of the first text, where the file's own form would hold letters."""

    def damage(data: bytes) -> bytes:
        place = data.index(b'"') + 1 if b'"' in data else len(data) // 2
        return data[:place] + piece + data[place:]

    return damage


def cut_first_line(data: bytes) -> bytes:
    """A line that was cut in the middle of a file."""
    line, _, rest = data.partition(b"\n")
    return line[: len(line) // 2] + b"\n" + rest


def blank(start: int, end: int | None) -> Damage:
    """Zeros in place of bytes, as a full disk leaves them."""
    return lambda data: data[:start] + bytes(len(data[start:end])) + (data[end:] if end is not None else b"")


DOCUMENT: dict[str, Damage] = {
    "cut": cut,
    "empty": lambda data: b"",
    "no UTF-8": fill(b"\xff\xfe"),
    "a zero byte": fill(b"\0"),
    "deeper than any reader goes": lambda data: data[:1] + DEEP,
    "another value": lambda data: b"3",
}
LINES: dict[str, Damage] = {
    "a cut line": cut_first_line,
    "a line of no UTF-8": fill(b"\xff\xfe"),
    "a zero byte": fill(b"\0"),
    "a line deeper than any reader goes": lambda data: DEEP + b"\n" + data,
    "a line with another value": lambda data: b"3\n" + data,
}
PARQUET: dict[str, Damage] = {
    "cut": cut,
    "no end": lambda data: data[:-4],
    "another beginning": lambda data: b"PK\3\4" + data[4:],
    "a blank footer": blank(-300, -8),
}
PICTURE: dict[str, Damage] = {"cut": cut, "empty": lambda data: b"", "a blank head": blank(0, 64), "text": lambda data: b"<html>404</html>"}
PLAIN: dict[str, Damage] = {"no UTF-8": fill(b"\xff\xfe")}
TABLE: dict[str, Damage] = {"cut": cut, "empty": lambda data: b"", "no UTF-8": fill(b"\xff\xfe"), "another value": lambda data: b"3"}
YAML: dict[str, Damage] = {
    "an open bracket": lambda data: data + b"{",
    "no UTF-8": fill(b"\xff\xfe"),
    "another value": lambda data: b"3",
    "deeper than any reader goes": lambda data: DEEP,
}
KINDS = {".parquet": PARQUET, ".jsonl": LINES, ".partial": LINES, ".txt": PLAIN, ".yaml": YAML, ".csv": TABLE, ".png": PICTURE}


def damages_of(path: Path) -> dict[str, Damage]:
    """What can be done to a file: JSON is lines or one document, whatever it is called."""
    if path.suffix != ".json":
        return KINDS[path.suffix]
    return LINES if path.read_text().count("\n") > 1 else DOCUMENT


def cut_anywhere(data: bytes, rng: random.Random) -> bytes:
    """Cut off a tenth or more."""
    return data[: rng.randrange(len(data) * 9 // 10)]

"""Damage to files, from a seed: bytes that are flipped, cut, doubled or put in, and values of another type."""

import json
import random
from typing import Any

# What a hand, a program or an attacker puts where something else is expected.
STRANGE: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", "x", "\ud800", "\u2028", "a\0b", "<script>alert(1)</script>"),
    *("../../etc/passwd", "/etc/passwd", "9" * 5000, "x" * 5000, [], {}, [[]], [None], {"a": 1}, ["x"], [{"type": "image"}], {"bytes": ""}),
)
PIECES = (b"\0", b"\xff\xfe", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"null", b"NaN", b"[" * 3000, b"\xed\xa0\x80", b"1e999")


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double or put in bytes, once or several times."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(damaged) + 1)
        length = rng.choice((1, 2, 8, 64))
        match rng.randrange(5):
            case 0 if place < len(damaged):
                damaged[place] ^= 1 << rng.randrange(8)
            case 1:
                del damaged[place : place + length]
            case 2:
                damaged[place:place] = rng.choice(PIECES)
            case 3:
                damaged[place:place] = damaged[place : place + length]
            case _:
                del damaged[place:]
    return bytes(damaged)


def damage_value(value: Any, rng: random.Random) -> Any:
    """Put one strange value in some place of a JSON value, take a field away, or add one."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {other: one for other, one in value.items() if other != key}
        return {**value, key: damage_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], damage_value(value[place], rng), *value[place + 1 :]]
    return rng.choice(STRANGE)


def damage_json(text: str, rng: random.Random) -> bytes:
    """Damage JSON, or a line of JSON lines, in its values, so that it is still read; else in its bytes."""
    if rng.random() < 0.4:
        return damage_bytes(text.encode(), rng)
    try:
        return json.dumps(damage_value(json.loads(text), rng)).encode()
    except ValueError:
        lines = text.split("\n")
        place = rng.randrange(max(len(lines) - 1, 1))
        lines[place] = json.dumps(damage_value(json.loads(lines[place]), rng))
        return "\n".join(lines).encode()

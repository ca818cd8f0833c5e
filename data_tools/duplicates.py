"""Pairs that say the same, and pairs that say the opposite of each other."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any


class DuplicateFinder:
    """Remembers a digest of each pair with the id of its first occurrence."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._first: dict[bytes, str] = {}
        self.prompts: dict[bytes, int] = {}

    def add(self, row_id: str, images: Sequence[str], prompt: str, chosen: str, rejected: str) -> dict[str, Any] | None:
        """Look for the pair among the earlier ones, and remember it.

        Args:
            row_id: Id of the pair.
            images: Sha256 of each image.
            prompt: Its text.
            chosen: The better response.
            rejected: The worse one.

        Returns:
            ``id``, ``same_as`` and ``kind`` where there is an earlier one. ``exact``: all alike. ``text``: alike but for case,
            spaces and punctuation. ``contradiction``: the same two responses preferred the other way round.
        """
        about = _digest(*images, prompt)
        self.prompts[about] = self.prompts.get(about, 0) + 1
        plain = [_plain(text) for text in (prompt, chosen, rejected)]
        keys = {
            "exact": _digest("exact", *images, prompt, chosen, rejected),
            "text": _digest("text", *images, *plain),
            "contradiction": _digest("text", *images, plain[0], plain[2], plain[1]),
        }
        kind = next((kind for kind, key in keys.items() if key in self._first), None)
        found = None if kind is None else {"id": row_id, "same_as": self._first[keys[kind]], "kind": kind}
        for name in ("exact", "text"):
            self._first.setdefault(keys[name], row_id)
        return found


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _digest(*parts: str) -> bytes:
    # Lengths before texts, so that no two lists of parts run together into the same bytes.
    data = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
    return hashlib.blake2b(data, digest_size=16).digest()

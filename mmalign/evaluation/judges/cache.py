"""Judgements on disk: asked once, kept over kills, never mixed between judges."""

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.evaluation.rows import drop_cut_line

logger = logging.getLogger(__name__)


class JudgementCache:
    """A file of JSON lines ``{"key", "judge", "prompt", "response", "cut"}`` to which each judgement is appended as it comes.

    The key is a hash of the judge's identity and the prompt, so that one file serves several judges and benchmarks, and several
    processes at once. ``cut`` says that the answer ended at the longest length allowed and not by itself.
    """

    def __init__(self, path: Path, *, judge: Mapping[str, Any]) -> None:
        """Read what is there; a last line that a kill cut off is dropped from the file.

        Args:
            path: The file; made with its folder when there is something to write.
            judge: All that decides an answer beside the prompt: model and decoding settings.

        Raises:
            ValueError: If a line that is not the last can't be read.
        """
        self.path = path
        self.judge = dict(judge)
        self._lock = threading.Lock()
        self._held = _read(path)

    def __getitem__(self, prompt: str) -> str:
        return self._held[self._key(prompt)]["response"]

    def __contains__(self, prompt: str) -> bool:
        return self._key(prompt) in self._held

    def was_cut(self, prompt: str) -> bool:
        """Whether a judgement ended at its longest length."""
        return bool(self._held[self._key(prompt)]["cut"])

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts without a judgement, each once, in their order."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self]

    def add(self, prompt: str, response: str, *, cut: bool) -> None:
        """Append a judgement in one write; safe to call from several threads."""
        key = self._key(prompt)
        row = {"key": key, "judge": self.judge, "prompt": prompt, "response": response, "cut": cut}
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that the line is in the file, where a kill of this process can't take it back, once add returns.
            with self.path.open("ab", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _write_whole(file.fileno(), (json.dumps(row) + "\n").encode())
            self._held[key] = row

    def warn_of_cut(self, prompts: Sequence[str], *, advice: str) -> None:
        """Log how many judgements of these prompts ended at the longest length allowed."""
        num_cut = sum(self._held[self._key(prompt)]["cut"] for prompt in prompts)
        if num_cut:
            logger.warning("%d of %d replies in %s were cut off at their longest length; %s", num_cut, len(prompts), self.path, advice)

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps({**self.judge, "prompt": prompt}, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    with path.open("r+b") as file:
        # Under the lock no other process is in the middle of a line: one without an end was left by a kill.
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = drop_cut_line(file).splitlines()
    rows = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    return {row["key"]: row for row in rows}


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (RecursionError, ValueError):
        row = None
    if not isinstance(row, dict) or not row.keys() >= {"key", "response", "cut"}:
        raise UserError(f"{place} is no judgement: {line[:80]!r}; remove the line to have its prompt asked again")
    return row


def _write_whole(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

"""A judge that says again what a cache holds: results are computed as if it were asked, and nothing is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.evaluation.rows import read_jsonl


class ReplayedJudge:
    """Answers from the file of a ``JudgementCache``, by prompt; no key, no server and no weights are needed."""

    def __init__(self, path: Path, *, model: str | None = None) -> None:
        """Read the replies of one judge.

        Args:
            path: The file.
            model: Its name, where the file holds replies of several.

        Raises:
            ValueError: If the file holds no replies of this judge, or of several judges that the name does not tell apart.
        """
        judges: dict[str, list[Mapping[str, Any]]] = {}
        for row in read_jsonl(path):
            judges.setdefault(json.dumps(row["judge"], sort_keys=True), []).append(row)
        chosen = [rows for rows in judges.values() if model in (None, rows[0]["judge"].get("model"))]
        if len(chosen) != 1:
            named = "" if model is None else f", {len(chosen)} of them named {model}"
            raise UserError(
                f"{path} holds replies of {len(judges)} judges{named}: {'; '.join(sorted(judges))[:500]}. "
                "Name one of them, or keep the lines of one in a file of its own"
            )
        self._judge: Mapping[str, Any] = chosen[0][0]["judge"]
        self._path, self._replies = path, {row["prompt"]: row["response"] for row in chosen[0]}

    @property
    def name(self) -> str:
        """The name that the judge had."""
        return str(self._judge["model"])

    @property
    def decoding(self) -> Mapping[str, Any]:
        """How it decoded."""
        return dict(self._judge.get("decoding", {}))

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """Look up the reply to each prompt.

        Raises:
            ValueError: If some have none: they were asked in other words, or about other answers.
        """
        lacking = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._replies]
        if lacking:
            raise UserError(
                f"{self._path} holds no reply of {self.name} to {len(lacking)} of {len(set(prompts))} prompts; the first: "
                f"{' '.join(lacking[0].split())[-120:]!r}. Give the answers that it judged, and its wording with --judge-prompt"
            )
        return [self._replies[prompt] for prompt in prompts]


def is_cache(path: Path) -> bool:
    """Whether a file of judgements is a cache, whose lines hold what was asked."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        line = file.readline()
    try:
        row = json.loads(line)
    except (RecursionError, ValueError):
        return False
    return isinstance(row, dict) and row.keys() >= {"key", "judge", "prompt", "response"}

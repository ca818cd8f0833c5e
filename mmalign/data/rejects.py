"""Broken rows go to a file with their reason, and the run continues until too many of them are broken."""

import json
from pathlib import Path

from mmalign.errors import UserError
from mmalign.files import writing

REJECTS_FILE = "rejects.jsonl"
"""Where a run lists them, in its folder."""


class Rejects:
    """Collects rejected rows as JSON lines ``{"id", "reason"}`` and stops a run that rejects too many.

    The file is written only when there is something to write; a file left by an earlier run is replaced.
    """

    # A share means nothing on the first few rows: one broken row of two is no reason to stop.
    MIN_ROWS_FOR_SHARE = 20

    def __init__(self, path: Path, *, max_share: float, write: bool = True) -> None:
        """Open the list of rejects.

        Args:
            path: JSONL file to write.
            max_share: Largest tolerated share of rejected rows, in [0, 1].
            write: False only counts: of several processes that see the same rows, one writes.

        Raises:
            ValueError: If ``max_share`` is not in [0, 1].
        """
        if not 0.0 <= max_share <= 1.0:
            raise UserError(f"max_share is {max_share}; expected a share in [0, 1]")
        self.path = path
        self.max_share = max_share
        self.num_rejected = 0
        self.first = ""
        """The first row that was rejected, with its reason."""
        self._write = write
        if write:
            path.unlink(missing_ok=True)

    def add(self, row_id: str, reason: str) -> None:
        """Write one rejected row. Flushed at once, so that a killed run keeps its reasons."""
        self.num_rejected += 1
        self.first = self.first or f"row {row_id}: {reason[:300]}"
        if not self._write:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A reason may quote the very text that no file can hold.
        with writing(self.path), self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps({"id": row_id, "reason": reason}, ensure_ascii=False) + "\n")

    def check(self, num_seen: int, *, final: bool = False) -> None:
        """Stop the run when more than ``max_share`` of ``num_seen`` rows are rejected.

        Args:
            num_seen: Rows seen so far, rejected ones included.
            final: Whether these are all rows; before the end the share is judged from 20 rows on.

        Raises:
            ValueError: With both shares, the file and the next step.
        """
        enough = final or num_seen >= self.MIN_ROWS_FOR_SHARE
        if enough and num_seen and self.num_rejected > self.max_share * num_seen:
            raise UserError(
                f"{self.num_rejected} of {num_seen} rows are broken, more than the tolerated share of "
                f"{self.max_share:.1%}; read the reasons in {self.path}, mend the data or raise --max-reject-share. "
                f"The first is {self.first}"
            )

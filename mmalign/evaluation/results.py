"""What a score is written down with: enough to tell whether two of them can be compared."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmalign.data.hashing import hash_file

SCORER_VERSION = "1"


@dataclass(frozen=True)
class Result:
    """The outcome of one benchmark for one model."""

    benchmark: str
    metrics: Mapping[str, float]
    mode: str
    num_answers: int
    data: Mapping[str, str]
    model: str | None = None
    decoding: Mapping[str, Any] | None = None
    scorer_version: str = field(default=SCORER_VERSION)

    def write(self, path: Path) -> None:
        """Save as one JSON object."""
        path.write_text(self.to_json(indent=1) + "\n", encoding="utf-8")

    def to_json(self, *, indent: int | None = None) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=indent)


def hash_files(files: Sequence[Path]) -> dict[str, str]:
    """Hash data files by name."""
    return {path.name: hash_file(path) for path in files}

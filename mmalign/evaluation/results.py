"""What a score is written down with: enough to tell whether two of them can be compared."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmalign.data.hashing import hash_file

SCORER_VERSION = "2"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of one benchmark for one model.

    Attributes:
        benchmark: Name.
        mode: "official" or "strict".
        variant: What else the score depends on: CHAIR's word finder, AMBER's similarity, rule or judge.
        metrics: Metric -> value.
        other_mode: The metrics that the other mode sees differently; empty where both agree.
        num_answers: How many were scored.
        data: sha256 by name of the benchmark's files.
        answers: The same of the answers.
        model: That answered, where mmalign asked it.
        decoding: How the answers were generated, where that is known.
        judge: Who judged, where the benchmark asks one.
        judge_prompt: sha256 of the judge's wording.
    """

    benchmark: str
    metrics: Mapping[str, float]
    mode: str
    num_answers: int
    data: Mapping[str, str]
    variant: str | None = None
    other_mode: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    decoding: Mapping[str, Any] | None = None
    judge: str | None = None
    judge_prompt: str | None = None
    scorer_version: str = SCORER_VERSION

    @property
    def other_name(self) -> str:
        """The mode that was not asked for."""
        return "strict" if self.mode == "official" else "official"

    def write(self, path: Path) -> None:
        """Save as one JSON object; the file is there whole or not at all."""
        ready = path.with_name(path.name + ".ready")
        ready.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        ready.rename(path)

    def to_json(self) -> str:
        """One JSON object with the metrics at its top, beside what they were made from; the other mode's stand under its name."""
        record = asdict(self)
        metrics, other = record.pop("metrics"), record.pop("other_mode")
        return json.dumps({**metrics, self.other_name: other, **record}, indent=1)

    def to_text(self) -> str:
        """A table for the terminal: each metric, and what the other mode makes of it where that differs."""
        width = max(map(len, self.metrics))
        lines = [f"{self.benchmark}, {self.mode}" + (f", {self.variant}" if self.variant else "") + f", {self.num_answers:,} answers"]
        for key, value in self.metrics.items():
            other = f"   ({self.other_name}: {_shown(self.other_mode[key])})" if key in self.other_mode else ""
            lines.append(f"{key:<{width}}  {_shown(value)}{other}")
        lines += [f"data {name}: sha256 {digest[:12]}" for name, digest in self.data.items()]
        lines += [f"judge: {self.judge}"] if self.judge else []
        return "\n".join([*lines, f"scorer version: {self.scorer_version}"])


def _shown(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def differing(metrics: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """Keep what the other mode sees differently."""
    return {key: value for key, value in others.items() if metrics.get(key) != value}


def hash_files(files: Sequence[Path]) -> dict[str, str]:
    """Hash files by name; of a folder, the files in it."""
    flat = [file for path in files for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    return {path.name: hash_file(path) for path in flat}

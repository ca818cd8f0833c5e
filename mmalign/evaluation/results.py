"""What a score is written down with: enough to tell whether two of them can be compared."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmalign.files import hash_file, write_whole
from mmalign.tables import text_table

SCORER_VERSION = "7"
# More files than these are named together.
MOST_FILES = 20


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of one benchmark for one model.

    Attributes:
        benchmark: Name.
        mode: "official" or "strict".
        variant: What else the score depends on: CHAIR's word finder, AMBER's similarity, rule or judge.
        metrics: Metric -> value.
        averages: Metric -> which average it is.
        other_mode: The metrics that the other mode sees differently; empty where both agree.
        num_answers: How many were scored.
        num_different: How many different ones they are: a model that says the same of all images may hallucinate little.
        num_at_limit: How many of them ended at the longest length allowed; None where the answers don't say.
        num_reasoned: How many held reasoning, or marks around the answer, which was taken away.
        num_unanswered: How many of those came to no answer: they are scored as empty.
        data: sha256 by name of the benchmark's files.
        answers: The same of the answers.
        model: That answered, where mmalign asked it.
        decoding: How the answers were generated, where that is known.
        judge: Who judged, where the benchmark asks one.
        judge_prompt: sha256 of the judge's wording.
        judge_decoding: How the judge decodes, where it was asked.
        num_judgements_reasoned: How many of its replies held reasoning.
        num_judgements_unanswered: How many of those came to no verdict.
    """

    benchmark: str
    metrics: Mapping[str, float]
    mode: str
    num_answers: int
    num_different: int | None = None
    num_at_limit: int | None = None
    num_reasoned: int = 0
    num_unanswered: int = 0
    data: Mapping[str, str]
    averages: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None
    other_mode: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    decoding: Mapping[str, Any] | None = None
    judge: str | None = None
    judge_prompt: str | None = None
    judge_decoding: Mapping[str, Any] | None = None
    num_judgements_reasoned: int = 0
    num_judgements_unanswered: int = 0
    scorer_version: str = SCORER_VERSION

    @property
    def other_name(self) -> str:
        """The mode that was not asked for."""
        return "strict" if self.mode == "official" else "official"

    def write(self, path: Path) -> None:
        """Save as one JSON object; the file is there whole or not at all."""
        write_whole(path, json.dumps(asdict(self), indent=1) + "\n")

    def to_json(self) -> str:
        """One JSON object with the metrics at its top, beside what they were made from; the other mode's stand under its name."""
        record = asdict(self)
        metrics, other = record.pop("metrics"), record.pop("other_mode")
        return json.dumps({**metrics, self.other_name: other, **record}, indent=1)

    def to_text(self) -> str:
        """A table for the terminal: each metric, and what the other mode makes of it where that differs."""
        lines = [f"{self.benchmark}, {self.mode}" + (f", {self.variant}" if self.variant else "") + f", {self.num_answers:,} answers"]
        others = {key: f"({self.other_name}: {_shown(value)})" for key, value in self.other_mode.items()}
        lines.append(text_table([[key, _shown(value), others.get(key, "")] for key, value in self.metrics.items()], text=(0, 1, 2)))
        lines += [f"{key}: {words}" for key, words in self.averages.items()]
        limit = "not said" if self.num_at_limit is None else f"{self.num_at_limit:,}"
        lines.append(f"answers that ended at the longest length: {limit}")
        lines += [] if self.num_different is None else [f"different answers: {self.num_different:,}"]
        lines += _counted("answers", self.num_reasoned, self.num_unanswered)
        lines += [f"data {name}: sha256 {digest[:12]}" for name, digest in self.data.items()]
        lines += [f"judge: {self.judge}"] if self.judge else []
        lines += _counted("judgements", self.num_judgements_reasoned, self.num_judgements_unanswered)
        return "\n".join([*lines, f"scorer version: {self.scorer_version}"])


def _counted(what: str, reasoned: int, unanswered: int) -> list[str]:
    """How many held reasoning, where any did."""
    return [f"{what} with reasoning, which was taken away: {reasoned:,}; of these without an answer: {unanswered:,}"] if reasoned else []


def _shown(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def differing(metrics: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """Keep what the other mode sees differently."""
    return {key: value for key, value in others.items() if metrics.get(key) != value}


def hash_files(files: Sequence[Path]) -> dict[str, str]:
    """Hash files by name; of a folder, the files in it. Of very many files, such as one per image, all hashes together are hashed."""
    flat = [file for path in files for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    if len(flat) <= MOST_FILES:
        return {path.name: hash_file(path) for path in flat}
    hashes = "".join(f"{path.parent.name}/{path.name} {hash_file(path)}\n" for path in sorted(flat))
    return {f"{len(flat)} files": hashlib.sha256(hashes.encode()).hexdigest()}


def name_search(result: Mapping[str, Any]) -> str | None:
    """Name the search for the answers of a result; None where there was none: they are greedy, or not mmalign's."""
    decoding = result.get("decoding") or {}
    beams = decoding.get("num_beams", 1)
    return f"{beams} beams, length penalty {decoding.get('length_penalty', 'not said')}" if beams != 1 else None

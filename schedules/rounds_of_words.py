"""Rounds of words: ``data_tools/sample_pairs.py`` samples and scores."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.sample_pairs import main as sample_pairs
from data_tools.sampled_lists import make_list, read_kept
from mmalign.data.datasets import load_rows
from mmalign.errors import UserError
from schedules.kinds import Held, Kind, Lists
from schedules.stages import option_values, pair_row, run_command, write_rows

BENCHMARKS = ("chair", "pope")
_SHARED_OPTIONS = ("--dtype", "--quantization", "--max-length", "--answer-end")


class Words(Kind):
    """Answers to questions about images."""

    def sample(self, number: int, policy: str, out: Path) -> Lists:
        """Sample and score by ``data_tools/sample_pairs.py``, and read every response with its score."""
        # It imports torch, which --help does without.
        from data_tools.sampling import load_source

        options, source = self.options, self.source(number)
        words = [str(source), "--model", policy, "--out", str(out), "--seed", str(options.seed + number), *shlex.split(options.sample)]
        words += [] if options.image_root is None else ["--image-root", str(options.image_root)]
        if not (out / "finished").is_file():
            if sample_pairs(words) != 0:
                served = any(word.split("=")[0] == "--endpoint" for word in words)
                advice = f"; the endpoint must serve the round's policy by the name {policy}: start it so, and give the same command again"
                raise UserError(f"round {number} stopped at: data_tools/sample_pairs.py {shlex.join(words)}{advice if served else ''}")
            (out / "finished").touch()
        prompts = option_values(options.sample, "--prompts")
        items, root, _, _ = load_source(source, prompts=prompts, image_root=options.image_root)
        kept = list(read_kept(out, repeated=options.method == "listwise"))

        def read(place: int) -> dict[str, Any]:
            return make_list(kept[place], items[kept[place]["index"]].question, image_root=root, suffix=str(number))

        return Lists(read, [line["scores"] for line in kept])

    def write_lists(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write lists as they are."""
        write_rows(path, rows, image_root=None)

    def read_lists(self, path: Path) -> Lists:
        """Read them."""
        rows = load_rows(path)
        return Lists(rows.__getitem__, rows["scores"][:])

    def pair(self, row: Mapping[str, Any], chosen: Any, rejected: Any, scores: tuple[float, float], *, name: str) -> dict[str, Any]:
        """Make a pair of two texts."""
        return pair_row(row, chosen, rejected, scores, name=name)

    def write_pairs(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write pairs as they are."""
        write_rows(path, rows, image_root=None)

    def hold_groups(self, folder: Path, groups: Lists, *, policy: str, words: Sequence[str]) -> Held:
        """Write all groups, with the log-probabilities that the policy gave them."""
        if not (folder / "lists.parquet").is_file():
            self.write_lists(folder / "lists.parquet", groups)
        cached = folder / "cached" / "cached.parquet"
        if not cached.is_file():
            run_command("cache-logps", folder / "lists.parquet", "--model", policy, "--out", cached.parent, *forwarded(words))
        # It imports torch, which --help does without.
        from mmalign.data.caches import LIST_TOKEN_LOGPS

        rows = load_rows(cached).select_columns([LIST_TOKEN_LOGPS])
        logps = [value for row in rows for part in row[LIST_TOKEN_LOGPS] for value in part]
        return Held(cached, ["--reference", "cached"], {"mean_token_logp": sum(logps) / len(logps)})

    def measure(self, folder: Path) -> dict[str, float]:
        """Score the model by CHAIR and POPE."""
        metrics: dict[str, float] = {}
        for benchmark in BENCHMARKS if self.options.eval_data is not None else ():
            path = folder / "eval" / f"{benchmark}.json"
            if not path.is_file():
                run_command("evaluate", benchmark, "--model", folder / "model", "--data", self.options.eval_data, "--out", folder / "eval")
            metrics |= json.loads(path.read_text(encoding="utf-8"))["metrics"]
        return metrics


def forwarded(words: Sequence[str]) -> list[str]:
    """Those of the training's options that cached log-probabilities depend on."""
    found: list[str] = []
    for place, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if name in _SHARED_OPTIONS:
            found += [word] if equals else words[place : place + 2]
    return found

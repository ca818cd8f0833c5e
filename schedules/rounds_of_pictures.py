"""Rounds of pictures: ``mmalign sample-images`` draws, and a scorer of pictures scores."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.data.datasets import load_rows
from mmalign.data.rows import check_columns
from mmalign.files import read_json_object
from schedules.kinds import Held, Kind
from schedules.stages import run_command


class Pictures(Kind):
    """Pictures of captions, as tokens; a response is a picture with its codes."""

    training_words = ("--pictures",)

    def sample(self, number: int, policy: str, out: Path) -> Iterator[dict[str, Any]]:
        """Draw by ``mmalign sample-images``, which resumes, and score every picture."""
        # They import torch, which --help does without.
        from data_tools.picture_lists import read_lists
        from data_tools.picture_scores import build_scorer

        assert self.options.scorer is not None
        scorer, source = build_scorer(self.options.scorer), self.source(number)
        check_columns(load_rows(source).column_names, ("id", "caption"), what=str(source))
        seed = ["--seed", self.options.seed + number]
        run_command("sample-images", source, "--model", policy, "--out", out, *seed, *shlex.split(self.options.sample))
        for row in read_lists(load_rows(out / "data"), scorer, what=str(out)):
            yield {**_as_responses(row), "id": f"{row['id']}/{number}"}

    def write_lists(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write lists in columns of pictures and codes."""
        from data_tools.picture_lists import write_picture_rows

        write_picture_rows(path, [_as_columns(row) for row in rows])

    def read_lists(self, path: Path) -> Iterator[dict[str, Any]]:
        """Read them as they were sampled."""
        return map(_as_responses, load_rows(path))

    def pair(self, row: Mapping[str, Any], chosen: Any, rejected: Any, scores: tuple[float, float], *, name: str) -> dict[str, Any]:
        """Make a pair of two pictures."""
        sides = {"chosen": chosen, "rejected": rejected}
        drawn = {f"{column}_{side}": response[column] for side, response in sides.items() for column in ("image", "codes")}
        kept = {"id": name, "caption": row["caption"], "codes_of": row["codes_of"]}
        return {**kept, **drawn, "score_chosen": scores[0], "score_rejected": scores[1]}

    def write_pairs(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write pairs as they are."""
        from data_tools.picture_lists import write_picture_rows

        write_picture_rows(path, rows)

    def hold_groups(self, folder: Path, groups: Sequence[Mapping[str, Any]], *, policy: str, words: Sequence[str]) -> Held:
        """Write groups of different scores; without cached log-probabilities, training is held to a copy of the policy."""
        if not (folder / "lists.parquet").is_file():
            self.write_lists(folder / "lists.parquet", [row for row in groups if len(set(row["scores"])) > 1])
        return Held(folder / "lists.parquet", [], {})

    def measure(self, folder: Path) -> dict[str, float]:
        """Draw held-out captions as in the rounds, and score them."""
        from data_tools.picture_lists import read_lists
        from data_tools.picture_scores import build_scorer

        source, scorer = self.options.eval_data, self.options.scorer
        if source is None or scorer is None:
            return {}
        drawn, words = folder / "eval" / "drawn", shlex.split(self.options.sample)
        run_command("sample-images", source, "--model", folder / "model", "--out", drawn, *words)
        kind, _, place = scorer.partition(":")
        if kind == "reader":
            run_command("evaluate", "images", drawn / "data", "--reader", place, "--out", folder / "eval")
            return {f"images/{name}": value for name, value in read_json_object(folder / "eval" / "images.json")["metrics"].items()}
        rows = read_lists(load_rows(drawn / "data"), build_scorer(scorer), what=str(drawn))
        scores = [score for row in rows for score in row["scores"]]
        return {"images/score": sum(scores) / len(scores)}


def _as_responses(row: Mapping[str, Any]) -> dict[str, Any]:
    drawn = zip(row["images_responses"], row["codes_responses"], strict=True)
    responses = [{"image": image, "codes": codes} for image, codes in drawn]
    return {**{name: row[name] for name in ("id", "caption", "codes_of", "scores")}, "responses": responses}


def _as_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    drawn = {f"{column}_responses": [response[name] for response in row["responses"]] for name, column in _COLUMNS.items()}
    return {**{name: row[name] for name in ("id", "caption", "codes_of", "scores")}, **drawn}


_COLUMNS = {"image": "images", "codes": "codes"}

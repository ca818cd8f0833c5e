"""Rounds of pictures: a command draws, as tokens or by a pipeline of diffusers, and a scorer of pictures scores."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from data_tools.picture_rows import write_picture_rows
from mmalign.data.datasets import load_rows
from mmalign.data.rows import check_columns
from schedules.iterate_options import IterateOptions
from schedules.kinds import Held, Kind, Lists
from schedules.stages import run_command


class Drawn(Kind):
    """Pictures of captions. A response is a picture with what training needs of how it was drawn."""

    command: str
    """Draws."""
    samples: str
    """Where it leaves pictures in its folder."""
    columns: ClassVar[Mapping[str, str]]
    """Of lists, by what they hold of each response."""
    kept: Sequence[str] = ("id", "caption")
    """Other columns of lists, beside their scores."""

    def draw(self, source: Path, *, model: object, out: Path, seed: int, suffix: str = "") -> Lists:
        """Draw pictures of captions, or resume, and score them; the suffix stands behind their ids."""
        # They import torch, which --help does without.
        from data_tools.picture_lists import SampledPictures
        from data_tools.picture_scores import build_scorer

        assert self.options.scorer is not None
        scorer = build_scorer(self.options.scorer)
        check_columns(load_rows(source).column_names, ("id", "caption"), what=str(source))
        run_command(self.command, source, "--model", model, "--out", out, "--seed", seed, *shlex.split(self.options.sample))
        drawn = SampledPictures(load_rows(out / self.samples), what=str(out))

        def read(number: int) -> dict[str, Any]:
            row = drawn.read(number)
            return self.as_responses({**row, "id": f"{row['id']}{suffix}"})

        return Lists(read, [drawn.score(number, scorer) for number in range(len(drawn.captions))])

    def sample(self, number: int, policy: str, out: Path) -> Lists:
        """Draw a round's captions."""
        return self.draw(self.source(number), model=policy, out=out, seed=self.options.seed + number, suffix=f"/{number}")

    def measure(self, folder: Path) -> dict[str, float]:
        """Draw held-out captions as in the rounds, and take the mean of their scores."""
        if self.options.eval_data is None:
            return {}
        lists = self.draw(self.options.eval_data, model=folder / "model", out=folder / "eval", seed=self.options.seed)
        scores = [score for own in lists.scores for score in own]
        return {"images/score": sum(scores) / len(scores)}

    def write_lists(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write lists with a column for each of what responses hold."""
        self.write_pairs(path, map(self._as_columns, rows))

    def read_lists(self, path: Path) -> Lists:
        """Read them as they were sampled."""
        rows = load_rows(path)
        return Lists(lambda number: self.as_responses(rows[number]), rows["scores"][:])

    def write_pairs(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows as they are."""
        write_picture_rows(path, rows)

    def hold_groups(self, folder: Path, groups: Lists, *, policy: str, words: Sequence[str]) -> Held:
        """Write groups of different scores; without cached log-probabilities, training is held to a copy of the policy."""
        if not (folder / "lists.parquet").is_file():
            self.write_lists(folder / "lists.parquet", groups.differing())
        return Held(folder / "lists.parquet", [], {})

    def as_responses(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a list's columns into responses."""
        held = {name: row[column] for name, column in self.columns.items() if column in row}
        responses = [dict(zip(held, values, strict=True)) for values in zip(*held.values(), strict=True)]
        return {**{name: row[name] for name in self.kept}, "responses": responses}

    def _as_columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        held = {self.columns[name]: [response[name] for response in row["responses"]] for name in row["responses"][0]}
        return {**{name: row[name] for name in (*self.kept, "scores")}, **held}


class Pictures(Drawn):
    """Pictures as tokens of a multimodal LLM."""

    own_words = ("--pictures",)
    command, samples = "sample-images", "data"
    columns: ClassVar = {"image": "images_responses", "codes": "codes_responses"}
    kept = (*Drawn.kept, "codes_of")

    def pair(self, row: Mapping[str, Any], chosen: Any, rejected: Any, scores: tuple[float, float], *, name: str) -> dict[str, Any]:
        """Make a pair of two pictures with their codes."""
        pictures = {"image_chosen": chosen["image"], "image_rejected": rejected["image"]}
        codes = {"codes_chosen": chosen["codes"], "codes_rejected": rejected["codes"], "codes_of": row["codes_of"]}
        return {"id": name, "caption": row["caption"], **pictures, **codes, "score_chosen": scores[0], "score_rejected": scores[1]}


class Denoised(Drawn):
    """Pictures of a pipeline of diffusers, with their paths where those are sampled."""

    methods: ClassVar = {"preference": "image-preference", "listwise": "image-preference"}
    command, samples = "sample-denoiser", "samples.parquet"
    columns: ClassVar = {"image": "images", "path": "paths"}

    def __init__(self, options: IterateOptions) -> None:
        """Train on paths where they are sampled."""
        super().__init__(options)
        self.own_words = ("--noise", "path") if "--paths" in shlex.split(options.sample) else ()

    def pair(self, row: Mapping[str, Any], chosen: Any, rejected: Any, scores: tuple[float, float], *, name: str) -> dict[str, Any]:
        """Make a pair of two pictures, or of their paths."""
        kept = {"id": name, "caption": row["caption"]}
        if "path" in chosen:
            return {**kept, "paths": [chosen["path"], rejected["path"]], "scores": list(scores)}
        pictures = {"image_chosen": chosen["image"], "image_rejected": rejected["image"]}
        return {**kept, **pictures, "score_chosen": scores[0], "score_rejected": scores[1]}

"""Curry-DPO (arXiv:2403.07230): train on the easiest pairs first, each stage held to the model that the one before it left.

    python -m schedules.curry lists.parquet --model sft --out runs/curry --stages 3 --train "--learning-rate 1e-5 --epochs 1"

DATA has rows of ``responses`` and ``scores`` (three and more, as ``train listwise`` reads them): stage 1 takes the best against the
worst of each prompt, the last stage the best against the second best. Or it has pairs: they are cut into stages across prompts, by
score_chosen - score_rejected, widest first, or by ``difficulty``, easiest first; that is a plain curriculum with staged references.

Every stage is one ``mmalign train preference``; its reference is a copy of the model it starts from. A stopped schedule resumes where it
stopped, finished stages are kept. The model is OUT/stage-N.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from data_tools.program import run_program
from mmalign.data.datasets import hash_data_files, load_rows
from mmalign.data.rows import LIST_COLUMNS, check_columns, response_text, row_id
from mmalign.errors import UserError
from mmalign.files import claim
from schedules.stages import RECORD, pair_row, train, training_words, write_rows


@dataclass(frozen=True, kw_only=True)
class CurryOptions:
    """Options of ``curry.py``."""

    data: Path = field(metadata={"positional": True})
    """lists of scored responses, or pairs: parquet, json or jsonl file, or a folder"""
    model: str
    """multimodal LLM to start from: folder or hub id"""
    out: Path
    """folder of the stages"""
    stages: int = 3
    """trainings, from easy to hard"""
    rank_by: Literal["scores", "difficulty"] = "scores"
    """pairs only: what tells easy from hard"""
    train: str = ""
    """options of mmalign train preference for every stage, in quotes"""
    image_root: Path | None = None
    """folder that relative image paths in the data start from"""


def run(options: CurryOptions) -> None:
    """Cut the data into stages and train them.

    Raises:
        ValueError: If the data can't be ranked, a training fails, or OUT holds another schedule.
    """
    if options.stages < 1:
        raise UserError(f"stages is {options.stages}; expected at least 1")
    words, dataset = training_words(options.train), load_rows(options.data)
    files = hash_data_files(options.data)
    settings = {"model": options.model, "stages": options.stages, "rank_by": options.rank_by, "train": options.train, "data": files}
    if "responses" in dataset.column_names:
        stages = cut_lists(dataset, options.stages)
    else:
        wanted = ("score_chosen", "score_rejected") if options.rank_by == "scores" else ("difficulty",)
        check_columns(dataset.column_names, ("images", "prompt", "chosen", "rejected", *wanted), what=str(options.data))
        stages = cut_pairs(dataset, options.stages, by=options.rank_by)
    empty = [number for number, rows in enumerate(stages, start=1) if not rows]
    if empty:
        raise UserError(f"stage {empty[0]} of {options.stages} has no pairs; give more responses with different scores, or fewer stages")
    claim(options.out / RECORD, settings, what="another schedule")
    model = options.model
    for number, rows in enumerate(stages, start=1):
        data, folder = options.out / "pairs" / f"stage-{number}.parquet", options.out / f"stage-{number}"
        if not data.is_file():
            write_rows(data, rows, image_root=options.image_root, features=rows.features)
        train(words, model=model, data=data, out=folder)
        model = str(folder)
    print(f"{options.stages} stages of {', '.join(str(len(rows)) for rows in stages)} pairs; the model is {model}")


def rank_pairs(scores: Sequence[float], stages: int) -> list[tuple[int, int] | None]:
    """Choose each stage's pair of one prompt.

    Args:
        scores: Of its responses.
        stages: How many.

    Returns:
        For each stage the numbers of chosen and rejected: the best against the worst first, against the second best last, in even
        steps of rank between; None where there are fewer responses below the best than stages, for the first stages.
    """
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    below = [i for i in reversed(order) if scores[i] < scores[order[0]]]
    if len(below) < stages:
        return [None] * (stages - len(below)) + [(order[0], i) for i in below]
    last = max(1, stages - 1)
    return [(order[0], below[round(number * (len(below) - 1) / last)]) for number in range(stages)]


@dataclass(frozen=True)
class Cut:
    """A pair of a list, before it is read."""

    row: int
    chosen: str
    rejected: str
    scores: tuple[float, float]
    name: str


@dataclass(frozen=True)
class CutRows:
    """A stage's pairs, whose images are read when they are asked for."""

    rows: Dataset
    cuts: list[Cut] = field(default_factory=list)

    @property
    def features(self) -> dict[str, Any]:
        """Types of what pairs take over."""
        return {"prompt": self.rows.features["prompt"]}

    def __len__(self) -> int:
        return len(self.cuts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (pair_row(self.rows[cut.row], cut.chosen, cut.rejected, cut.scores, name=cut.name) for cut in self.cuts)


def cut_lists(rows: Dataset, stages: int) -> list[CutRows]:
    """Make each stage's pairs from lists of scored responses. A list without two different scores gives none."""
    check_columns(rows.column_names, (*LIST_COLUMNS, "images"), what="the data set")
    found = [CutRows(rows) for _ in range(stages)]
    for index, row in enumerate(rows.remove_columns("images")):
        texts, scores = _read_list(row, index)
        for number, pair in enumerate(rank_pairs(scores, stages)):
            if pair is not None and texts[pair[0]] != texts[pair[1]]:
                own, name = (scores[pair[0]], scores[pair[1]]), f"{row_id(row, index=index)}/{number + 1}"
                found[number].cuts.append(Cut(index, texts[pair[0]], texts[pair[1]], own, name))
    return found


def _read_list(row: Mapping[str, Any], index: int) -> tuple[list[str], list[float]]:
    for name in ("responses", "scores"):
        if not isinstance(row[name], list):
            raise UserError(f"row {index} has no list of {name}")
    if len(row["responses"]) != len(row["scores"]):
        raise UserError(f"row {index} has {len(row['responses'])} responses and {len(row['scores'])} scores; expected a score for each")
    texts = [response_text(response, f"row {index}: response") for response in row["responses"]]
    return texts, [_finite(score, "scores", index) for score in row["scores"]]


def _finite(value: Any, name: str, index: int) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"row {index}: {name} is {value!r}; expected a finite number")
    return float(value)


def cut_pairs(rows: Dataset, stages: int, *, by: Literal["scores", "difficulty"]) -> list[Dataset]:
    """Cut pairs into stages of about equal size, the easiest first; ties stay in the order of the data."""
    names = ("difficulty",) if by == "difficulty" else ("score_rejected", "score_chosen")
    columns = {name: rows[name][:] for name in names}

    def hardness(index: int) -> float:
        first, *less = (_finite(columns[name][index], name, index) for name in names)
        return first - sum(less)

    ordered = sorted(range(len(rows)), key=hardness)
    return [rows.select(ordered[len(ordered) * i // stages : len(ordered) * (i + 1) // stages]) for i in range(stages)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the schedule; returns its exit status."""
    return run_program(run, CurryOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())

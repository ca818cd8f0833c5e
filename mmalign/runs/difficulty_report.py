"""``mmalign report difficulty``: what it shows is gathered from the folder that ``mmalign score-difficulty`` wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from mmalign.data.datasets import load_rows
from mmalign.data.rows import Message, check_columns, read_pair
from mmalign.difficulty.agreement import describe_sources
from mmalign.difficulty.voting import spread
from mmalign.errors import UserError
from mmalign.files import SCORED, SCORING, SUMMARY, read_json_object
from mmalign.methods.preference_metrics import difficulty_quartiles
from mmalign.options.report import ReportDifficultyOptions
from mmalign.reports.difficulty_page import DifficultyScores, RankedPair, write_difficulty_page
from mmalign.reports.gallery import make_thumbnail


def run(options: ReportDifficultyOptions) -> None:
    """Write the page of a data set's difficulty scores.

    Raises:
        ValueError: If the folder has no scores, or they don't belong together.
    """
    dataset, scores = load_scores(options.scores, group_by=options.group_by)
    pairs = pick_pairs(dataset, scores, number=options.num_pairs, image_root=options.image_root)
    facts = describe_scoring(options.scores, scores)
    print(f"saved in {write_difficulty_page(options.out, title=options.title, scores=scores, pairs=pairs, facts=facts)}")


def load_scores(folder: Path, *, group_by: str = "source") -> tuple[Dataset, DifficultyScores]:
    """Read scored pairs and their statistics, and compare groups of them.

    Raises:
        ValueError: If one of the files is missing, from another run than the other, or from an earlier version.
    """
    for name in (SCORED, SUMMARY):
        if not (folder / name).is_file():
            raise UserError(f"no {name} in {folder}; expected the folder that mmalign score-difficulty wrote")
    summary = read_json_object(folder / SUMMARY)
    if "proxy_agreement" not in summary:
        raise UserError(f"{folder / SUMMARY} is from an earlier version and has no agreement of proxies; run mmalign fuse-difficulty again")
    dataset = load_rows(folder / SCORED)
    if len(dataset) != summary["num_scored"]:
        raise UserError(f"{SCORED} has {len(dataset)} pairs and {SUMMARY} {summary['num_scored']}; run mmalign fuse-difficulty again")
    proxies = list(next(iter(summary["statistics"].values())))
    check_columns(dataset.column_names, ("difficulty", *(f"gap_{name}" for name in proxies)), what=str(folder / SCORED))
    difficulty = np.array(dataset["difficulty"], dtype=np.float64)
    gaps = {name: np.array(dataset[f"gap_{name}"], dtype=np.float64) for name in proxies}
    groups = _read_groups(dataset, group_by)
    scores = DifficultyScores(
        gaps=gaps,
        difficulty=difficulty,
        quartiles=difficulty_quartiles(torch.from_numpy(difficulty)).tolist(),
        group_by=group_by,
        groups=groups,
        by_group=describe_sources(gaps, difficulty, groups),
        summary=summary,
    )
    return dataset, scores


def _read_groups(dataset: Dataset, column: str) -> list[str]:
    if column in dataset.column_names:
        return [str("all" if value in (None, "") else value) for value in dataset[column]]
    if column != "source":
        raise UserError(f"--group-by is {column!r}; the pairs have the columns {', '.join(dataset.column_names)}")
    return ["all"] * len(dataset)


def pick_pairs(dataset: Dataset, scores: DifficultyScores, *, number: int, image_root: Path | None) -> list[RankedPair]:
    """Read pairs at evenly spaced ranks of difficulty, the easiest and the hardest among them.

    Raises:
        ValueError: If ``number`` is not positive, or ``image_root`` is no folder.
    """
    if number < 1:
        raise UserError(f"num_pairs is {number}; expected 1 or more")
    if image_root is not None and not image_root.is_dir():
        raise UserError(f"no folder of images at {image_root}")
    order = np.argsort(scores.difficulty, kind="stable")
    ranks = np.unique(np.linspace(0, len(order) - 1, min(number, len(order))).round().astype(int))
    return [_read_ranked(dataset, int(order[rank]), int(rank) + 1, scores, image_root) for rank in ranks.tolist()]


def describe_scoring(folder: Path, scores: DifficultyScores) -> dict[str, str]:
    """Name what the scores come from."""
    facts = {"Scores": str(folder)}
    path = folder / SCORING
    if path.is_file():
        held = read_json_object(path)
        named = {
            "Contrastive model": "clip",
            "Generative model": "mllm",
            "Text of the contrastive model": "text_policy",
            "Weights": "reference",
        }
        facts |= {words: str(held[key]) for words, key in named.items() if key in held}
        facts["Data"] = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in held["data"].items())
    facts["Rejected rows"] = f"{scores.summary['num_rejected']:,}"
    return facts


def _read_ranked(dataset: Dataset, index: int, rank: int, scores: DifficultyScores, image_root: Path | None) -> RankedPair:
    raw: dict[str, Any] = dataset[index]
    images: list[str] | None = None
    try:
        row = read_pair(raw, index=index, image_root=image_root)
        images = [make_thumbnail(image) for image in row.images]
    except UserError:
        # An image that has gone since the scoring; what the pair says can still be shown.
        row = read_pair(raw, index=index, with_images=False)
    return RankedPair(
        id=row.id,
        rank=rank,
        difficulty=float(scores.difficulty[index]),
        source=row.source,
        gaps={name: float(values[index] / (spread(values) or 1.0)) for name, values in scores.gaps.items()},
        images=images,
        prompt=_read_prompt(row.prompt),
        chosen=row.chosen,
        rejected=row.rejected,
    )


def _read_prompt(messages: Sequence[Message]) -> str:
    turns = [(message["role"], "".join(part.get("text", "") for part in message["content"]).strip()) for message in messages]
    return turns[0][1] if len(turns) == 1 else "\n".join(f"{role}: {text}" for role, text in turns)

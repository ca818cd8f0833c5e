"""What schedules of several trainings share: commands that stop the schedule, pairs from scored lists."""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.picture_rows import write_picture_rows
from data_tools.row_files import image_cell
from mmalign.cli import main as mmalign
from mmalign.errors import UserError

RECORD = "schedule.json"
"""Of what a schedule's folder belongs to."""
OWN_OPTIONS = ("--model", "--data", "--out", "--reference", "--reference-model")
"""Options of training that a schedule sets itself."""


def training_words(text: str) -> list[str]:
    """Read the options that go to every training.

    Raises:
        ValueError: If one of them is the schedule's own, or makes an adapter, which the next stage can't train.
    """
    refuse_own("--train", text, OWN_OPTIONS)
    words = shlex.split(text)
    if other := next((name for name in map(_option, words) if name in ("--lora-rank", "--config")), None):
        raise UserError(f"--train holds {other}: stages train full weights, because each starts from the whole model before it")
    return words


def refuse_own(option: str, text: str, own: Collection[str]) -> None:
    """Refuse what the schedule sets itself among the options in an option.

    Raises:
        ValueError: With the first of them.
    """
    if name := next((name for name in map(_option, shlex.split(text)) if name in own), None):
        raise UserError(f"{option} holds {name}, which the schedule sets itself; leave it out")


def _option(word: str) -> str:
    return word.split("=")[0]


def option_values(text: str, name: str) -> list[str]:
    """The values of an option among the sampling options; none where it is not there."""
    words = [part for word in shlex.split(text) for part in (word.split("=", 1) if word.startswith(f"{name}=") else [word])]
    if name not in words:
        return []
    rest = words[words.index(name) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))]


def train(words: Sequence[str], *, model: str, data: Path, out: Path, method: str = "preference") -> None:
    """Train a stage, or resume it; its reference is a copy of the model that it starts from. Nothing happens where it is done."""
    if (out / "train_log.json").is_file():
        return
    run_command("train", method, "--model", model, "--data", data, "--out", out, *words)


def run_command(*words: object) -> None:
    """Run one mmalign command.

    Raises:
        ValueError: If it fails.
    """
    text = [str(word) for word in words]
    print(f"$ mmalign {shlex.join(text)}", flush=True)
    if mmalign(text) != 0:
        raise UserError(f"the schedule stopped at: mmalign {shlex.join(text)}; fix the cause and give the same command again")


def write_rows(
    path: Path, rows: Iterable[Mapping[str, Any]], *, image_root: Path | None, features: Mapping[str, Any] | None = None
) -> None:
    """Write rows whose images become bytes, some at a time.

    Args:
        path: Of the Parquet file.
        rows: At least one.
        image_root: Folder that their paths start from.
        features: Types of columns that stay as they were read.
    """
    held = ({**row, "images": [image_cell(image, root=image_root, embed=True) for image in row["images"] or ()]} for row in rows)
    write_picture_rows(path, held, features=features)


def pair_row(row: Mapping[str, Any], chosen: str, rejected: str, scores: tuple[float, float], *, name: str) -> dict[str, Any]:
    """Make a pair of two responses to a row's prompt, with their scores for the objectives that read them."""
    return {
        "id": name,
        "images": row["images"],
        "prompt": row["prompt"],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }

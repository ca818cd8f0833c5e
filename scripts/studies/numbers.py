"""The numbers behind a study's tables, published beside its page: a file with a line per finished run."""

import json
from collections.abc import Sequence
from pathlib import Path

from mmalign.files import read_json, write_whole

FOLDERS = ("cells", "search")
"""Of a study's finished runs."""


def write_numbers(out: Path, path: Path, folders: Sequence[str] = FOLDERS) -> None:
    """Collect the finished runs in these folders of a study in one file, without their logs."""
    files = sorted(file for folder in folders for file in out.glob(f"{folder}/**/*.json") if not file.name.endswith(".log.json"))
    lines = [json.dumps({"run": file.relative_to(out).as_posix(), "metrics": read_json(file)}) for file in files]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(f"{line}\n" for line in lines))


def take_numbers(path: Path, out: Path) -> int:
    """Write the runs of a published file into a study's folder, those that it lacks.

    Returns:
        How many.

    Raises:
        SystemExit: If the file is missing, or a line is not of a finished run.
    """
    if not path.is_file():
        raise SystemExit(f"no numbers in {path}: name a file that a study's --report wrote, docs/studies/numbers/NAME.jsonl")
    taken = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            run, metrics = out / row["run"], dict(row["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f'{path}, line {number}: not {{"run": ..., "metrics": {{...}}}}: {line[:100]}') from error
        if run.suffix != ".json" or not run.resolve().is_relative_to(out.resolve()):
            raise SystemExit(f"{path}, line {number}: {row['run']} is not the file of a run in the study's folder")
        if not run.is_file():
            run.parent.mkdir(parents=True, exist_ok=True)
            write_whole(run, json.dumps(metrics, indent=1) + "\n")
            taken += 1
    return taken

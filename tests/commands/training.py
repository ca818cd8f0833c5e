"""Short trainings through the command line, and what they leave."""

import json
from pathlib import Path
from typing import Any

from mmalign.cli import main

STEP = ["--max-steps", "3", "--batch-size", "4", "--logging-steps", "1", "--learning-rate", "1e-3"]


def train(model: Path, data: Path, out: Path, *words: str, kind: str = "preference") -> int:
    """Return the code that the command ends with, also where its options are refused before it runs."""
    try:
        return main(["train", kind, "--model", str(model), "--data", str(data), "--out", str(out), *STEP, *words])
    except SystemExit as stop:
        return int(stop.code or 0)


def read_log(out: Path) -> list[dict[str, Any]]:
    return [entry for entry in json.loads((out / "train_log.json").read_text()) if "loss" in entry]


def read_rejects(out: Path) -> dict[str, str]:
    lines = (out / "rejects.jsonl").read_text().splitlines()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}

"""The page of the study of items: what the arms say, and how they rank an answer's items, from the finished runs."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.world import BATCH, headings, read_metrics

NAMES = {
    "sft": "SFT (the starts)",
    "irpo-items": "IRPO, items of one answer",
    "dpo-pairs": "DPO, whole answers",
    "sft-true": "SFT on the true answers",
}
COLUMNS = {
    **headings("object F1", "hallucinated", "CHAIR_i", "coverage", "POPE F1"),
    "NDCG": "NDCG of items ↑",
    "absent last": "absent item last % ↑",
    "above": "others above it % ↑",
}
ABOUT = """All arms of a seed train the same start on the same rows for the same number of steps, {batch} rows each. Means over seeds with
95% intervals (Student's t); differences are paired by seed. Items are ranked by the mean log-probability of their tokens in held-out
enumerations with one absent object among them, in random order."""


def write_page(options: argparse.Namespace, searches: Mapping[tuple[str, str], Mapping[tuple[str, str], float]]) -> Path:
    """Write the measured part of ``items.md``; what has no finished run is left out."""
    form = " --quick" if options.quick else ""
    command = f"python -m scripts.studies.items{form} --out runs/studies/items --processes 2 --report docs/studies"
    parts = [f"```\n{command}\n```", ABOUT.format(batch=BATCH)]
    runs = page.read_runs(options.out / "cells", read=read_metrics)
    if runs:
        rows = page.arm_rows(runs, NAMES, COLUMNS)
        parts += ["## Arms", markdown_table(["arm", "seeds", *COLUMNS.values()], rows.values())]
        parts += [part for base in ("sft", "sft-true") for part in _differences(runs, base)]
    if searches:
        rates = ", ".join(page.learning_rates(searches.values()))
        parts += ["## Search", f"Object F1 on the validation scenes by strength, for the learning rates {rates}:"]
        parts.append(page.search_table(searches, name="arm"))
    return page.write_measured(options.report / "items.md", "Items inside one answer, on the embedded world", parts)


def _differences(runs: page.Runs, base: str) -> list[str]:
    others = [arm for arm in NAMES if arm not in (base, "sft") and arm in runs and base in runs and set(runs[arm]) & set(runs[base])]
    rows = [[NAMES[arm], *(page.compare_metric(runs[arm], runs[base], key) for key in COLUMNS)] for arm in others]
    return [f"Paired over seeds, minus {NAMES[base]}:", markdown_table(["arm", *COLUMNS.values()], rows)] if rows else []

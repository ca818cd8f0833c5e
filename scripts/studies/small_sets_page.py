"""The measured part of the page of small sets, from the finished runs."""

import argparse
from pathlib import Path

from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.small_sets_grid import ARMS, LABELS, OTHERS, count_steps
from scripts.studies.study import slug

COMMAND = "python -m scripts.studies.small_sets --data cifar10 --target parts/tower_timm.safetensors"
ABOUT = """Accuracy in percent on CIFAR-10's 5,000 test images of a network tuned on a share of the labels of 10,000 images ({tune} steps of
32), after {pretrain} steps of 64 images of pre-training. `distilled` began as the very images of `real` and was learned in {distill} steps.
`views`: shifted and flipped images in pre-training. Means over seeds with 95% intervals (Student's t); differences are paired by seed, with
the p-value of the t-test and no correction for looking at many."""
NAMES = {slug(arm.name): arm.name for arm in ARMS}


def write_page(options: argparse.Namespace) -> Path:
    """Write both tables; what has no finished run is left out."""
    runs = page.read_runs(options.out / "cells")
    if not runs:
        raise SystemExit(f"no finished cell in {options.out}; run the study without --report-only")
    about = ABOUT.format(**count_steps(smoke=options.smoke)._asdict())
    rows = page.arm_rows(runs, NAMES, LABELS).values()
    parts = [f"```\n{COMMAND}\n```", about, markdown_table(["pre-trained on", "seeds", *LABELS], rows)]
    pairs = [(arm, other) for arm, others in OTHERS.items() for other in others if _both(runs, arm, other)]
    lines = [[f"{arm} - {other}", *_compare(runs, arm, other)] for arm, other in pairs]
    parts += [markdown_table(["difference", *LABELS], lines)] if lines else []
    return page.write_measured(options.report / "small_sets.md", "Small sets for pre-training", parts)


def _both(runs: page.Runs, arm: str, other: str) -> bool:
    """Say whether two arms share a seed."""
    return bool(set(runs.get(slug(arm), {})) & set(runs.get(slug(other), {})))


def _compare(runs: page.Runs, arm: str, other: str) -> list[page.Difference]:
    """Compare two arms at each share of the labels."""
    return [page.compare_metric(runs[slug(arm)], runs[slug(other)], key) for key in LABELS]

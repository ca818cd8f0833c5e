"""The page of the study of chasing adapters: what was learnt of the first domain, and what is left of it, from the finished runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.chasing_grid import ARMS, ORDERS, SEQUENTIAL, Arm, Domain, count_steps
from scripts.studies.study import SFT
from scripts.studies.world import BATCH, headings, read_metrics

SAID = headings("object F1", "POPE F1")
ABOUT = """All arms of a seed train adapters of one SFT model for {steps} steps of {batch} rows on each domain, joint DPO for twice as many
on both; nothing was searched, neither for DPO nor for the others. Means over seeds with 95% intervals (Student's t); differences are
paired by seed. A seed draws start, rows and order of the batches. The loss is DPO's on 150 held-out pairs of the first domain, times
100; its reference is the start. Forgetting is that loss after both domains - after the first."""
LOSS = "loss x 100"


def make_arm(runs: page.Runs, arm: Arm, order: Sequence[Domain]) -> page.Seeds:
    """Lay out what an arm's two models measure as one run: after the first domain where there is such a model, after both, and between."""
    first_name, last_name = arm.models(order)
    found = {}
    for seed, last in runs.get(last_name, {}).items():
        first = None if first_name is None else runs.get(first_name, {}).get(seed)
        if first_name is not None and first is None:
            continue
        loss = f"loss {order[0]}"
        values = {f"{key} after both": last[key] for key in SAID} | {f"{LOSS} after both": 100 * last[loss]}
        if first is not None:
            values |= {f"{key} after the first": first[key] for key in SAID} | {f"{LOSS} after the first": 100 * first[loss]}
            values["forgetting"] = 100 * (last[loss] - first[loss])
        found[seed] = values
    return found


def order_tables(runs: page.Runs, order: Sequence[Domain]) -> list[str]:
    """Lay out one order of the domains: the arms, then their differences from sequential DPO."""
    made = {arm: seeds for arm in ARMS if (seeds := make_arm(runs, arm, order))}
    measured = [*SAID, LOSS]
    columns = [*(f"{key} after {when}" for when in ("the first", "both") for key in measured), "forgetting"]
    rows = [[arm.name, len(seeds), *(_cell(seeds, key) for key in columns)] for arm, seeds in made.items()]
    tables = [markdown_table(["arm", "seeds", *columns], rows)]
    base = made.get(SEQUENTIAL, {})
    others = [arm for arm in made if arm is not SEQUENTIAL and set(made[arm]) & set(base)]
    if others:
        compared = [key for key in columns if "both" in key]
        differences = [[arm.name, *(page.compare_metric(made[arm], base, key) for key in compared)] for arm in others]
        tables += ["Paired over seeds:", markdown_table([f"arm minus {SEQUENTIAL.name}", *compared], differences)]
    return tables


def _cell(seeds: page.Seeds, key: str) -> object:
    return page.estimate_metric(seeds, key) if all(key in metrics for metrics in seeds.values()) else ""


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of ``chasing.md``; what has no finished run is left out."""
    quick = " --quick" if options.quick else ""
    parts = [
        f"```\npython -m scripts.studies.chasing --out runs/studies/chasing --processes 2 --report docs/studies{quick}\n```",
        ABOUT.format(steps=count_steps(quick=options.quick, smoke=options.smoke), batch=BATCH),
    ]
    runs = page.read_runs(options.out / "cells", read=read_metrics)
    if runs:
        starts = page.arm_rows(runs, {SFT: "SFT (the starts)"}, SAID)
        parts += ["## The starts", markdown_table(["model", "seeds", *SAID.values()], starts.values())]
    for order in ORDERS:
        if any(make_arm(runs, arm, order) for arm in ARMS):
            parts += [f"## First {order[0]}, then {order[1]}", *order_tables(runs, order)]
    return page.write_measured(options.report / "chasing.md", "Chasing adapters on the embedded world", parts)

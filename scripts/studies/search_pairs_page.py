"""The page of the study of search pairs, from the finished runs."""

import argparse
from pathlib import Path

from mmalign.files import read_json
from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.search_pairs_grid import ARMS, OTHERS, count_scenes, count_steps, read_search
from scripts.studies.study import slug
from scripts.studies.world import BATCH, headings, object_f1, read_metrics

COLUMNS = headings("object F1", "hallucinated", "CHAIR_i", "coverage", "POPE F1", "yes", "words")
DATA = {"tokens": "tokens drawn per question", "samples": "answers per question", "pairs": "pairs"}
COMPARED = {"object F1": "object F1", "POPE F1": "POPE F1", "words": "words"}
NAMES = {slug(arm.name): arm.name for arm in ARMS}
ABOUT = """All arms train the same SFT model for {steps} steps of {batch} pairs, on the start's own answers to {scenes} scenes per seed. A
seed draws scenes, answers and order. `steps`: pairs of a tree search; `best of N`: the best and the worst of as many whole answers as have
the tokens of the trees. `truth`: known objects; `self`: the start's P(yes) of the answer so far, or of whole answers. `steps as DPO`: the
search's pairs with `dpo`, without visits. Each arm has the beta and the learning rate that a search of its own found, with as many runs,
on other scenes. Means over seeds with 95% intervals (Student's t); differences are paired by seed, with the p-value of
the t-test and no correction for looking at many."""


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of ``search_pairs.md``; what has no finished run is left out."""
    out, form = options.out, {"quick": options.quick, "smoke": options.smoke}
    about = ABOUT.format(steps=count_steps(**form), scenes=count_scenes(**form), batch=BATCH)
    command = "python -m scripts.studies.search_pairs --out runs/studies/search_pairs --processes 2 --report docs/studies"
    parts = [f"```\n{command}{' --quick' if options.quick else ''}\n```", about]
    runs = page.read_runs(out / "cells" / "arms", read=read_metrics)
    if runs:
        start = read_json(out / "cells" / "sft.json")
        start |= {"object F1": object_f1(start)}
        rows = [page.start_row("SFT (the start)", start, COLUMNS), *page.arm_rows(runs, NAMES, COLUMNS).values()]
        parts += ["## What the model says", markdown_table(["arm", "seeds", *COLUMNS.values()], rows)]
        parts += ["## Their data", markdown_table(["arm", "seeds", *DATA.values()], page.arm_rows(runs, NAMES, DATA).values())]
        parts += _differences(runs)
    searches = {(arm.name, "beta"): scores for arm in ARMS if (scores := read_search(arm, out))}
    if searches:
        rates = " and ".join(page.learning_rates(searches.values()))
        told = f"Object F1 of captions of the validation scenes, one seed; learning rates {rates}."
        parts += ["## The search for beta and learning rate", told, page.search_table(searches, name="arm")]
    return page.write_measured(options.report / "search_pairs.md", "Is a tree search worth its tokens?", parts)


def _differences(runs: page.Runs) -> list[str]:
    """Arms less those that they are compared with, over the seeds that both have."""
    pairs = {arm: other for arm, other in OTHERS.items() if set(runs.get(slug(arm), {})) & set(runs.get(slug(other), {}))}
    rows = [
        [f"{arm} - {other}", *(page.compare_metric(runs[slug(arm)], runs[slug(other)], key) for key in COMPARED)]
        for arm, other in pairs.items()
    ]
    return ["## Differences", markdown_table(["arm - other", *COMPARED.values()], rows)] if rows else []

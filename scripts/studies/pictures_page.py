"""The page of the study of pictures, from the finished runs."""

import argparse
from pathlib import Path

from mmalign.files import read_json
from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.pictures_grid import ARMS, CONTROL, ROUNDS, choose_sizes, read_search
from scripts.studies.pictures_start import BATCH
from scripts.studies.study import slug

COLUMNS = {
    "f1": "F1 ↑",
    "all_right": "all right % ↑",
    "false_kinds": "false kinds % ↓",
    "objects": "objects",
    "diversity": "diversity",
    "guided f1": "F1, guidance 2 ↑",
}
COMPARED = {"f1": "F1", "all_right": "all right", "guided f1": "F1, guidance 2"}
NAMES = {slug(arm.name): arm.name for arm in ARMS}
ABOUT = """All arms train the same Janus, fine-tuned for {sft_steps} steps, for {steps} steps of {batch} rows; `more training on chosen` is
the control: SFT on the pictures that are chosen in the pairs. A seed draws captions, pictures and order. `ddo`: the start's own samples,
without guidance, against the data's pictures of the same captions. `dno`: in each of {rounds} rounds four samples of the round's policy,
the best against the worst by how likely the reader finds the caption, with win rates. Each arm has the beta and the learning rate that a
search of its own found by F1 on other captions; the control has rates alone to search. Two pictures of each of {held_out} held-out
captions are read by the reader. Means over seeds with 95% intervals (Student's t); differences are paired by seed, without
correction for looking at many."""


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of ``pictures.md``; what has no finished run is left out."""
    out, sizes = options.out, choose_sizes(quick=options.quick, smoke=options.smoke)
    about = ABOUT.format(**vars(sizes), batch=BATCH, rounds=ROUNDS)
    parts = ["```\npython -m scripts.studies.pictures --out runs/studies/pictures --processes 2 --report docs/studies\n```", about]
    runs = page.read_runs(out / "cells" / "arms", read=read_json)
    if runs:
        rows = [
            page.start_row("SFT (the start)", read_json(out / "cells" / "sft.json"), COLUMNS),
            *page.arm_rows(runs, NAMES, COLUMNS).values(),
        ]
        parts += ["## What is drawn", markdown_table(["arm", "seeds", *COLUMNS.values()], rows)]
        parts += _differences(runs)
    searches = {(arm.name, "beta"): scores for arm in ARMS if (scores := read_search(arm, out))}
    if searches:
        told = f"F1 without guidance, one seed; learning rates {' and '.join(page.learning_rates(searches.values()))}."
        parts += ["## The search for beta and learning rate", told, page.search_table(searches, name="arm")]
    return page.write_measured(options.report / "pictures.md", "Do preferences help a model that draws?", parts)


def _differences(runs: page.Runs) -> list[str]:
    """Arms less the control, over the seeds that both have."""
    control = runs.get(slug(CONTROL.name), {})
    rows = [
        [f"{arm.name} - {CONTROL.name}", *(page.compare_metric(runs[slug(arm.name)], control, key) for key in COMPARED)]
        for arm in ARMS[1:]
        if set(runs.get(slug(arm.name), {})) & set(control)
    ]
    return ["## Differences", markdown_table(["arm - control", *COMPARED.values()], rows)] if rows else []

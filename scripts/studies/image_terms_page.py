"""The page of the study of image terms: how much answers depend on the image, beside what the model says; from the finished runs."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.image_terms_grid import ARMS, DPO, SFT, Rows, count_steps, read_search
from scripts.studies.study import slug
from scripts.studies.world import BATCH, headings, read_metrics

SEEING = {
    "own - other": "log p own - other",
    "own - other > 0": "> 0, %",
    "own - weakened": "log p own - weakened",
    "own - weakened > 0": "> 0, %",
    "h own - other": "h own - other",
    "h own - other > 0": "> 0, %",
    "h own - weakened": "h own - weakened",
    "h own - weakened > 0": "> 0, %",
    "h chosen": "h chosen",
    "h rejected": "h rejected",
}
ASKED = {
    "descriptions": "descriptions",
    "descriptions > 0": "> 0, %",
    "questions": "questions",
    "questions > 0": "> 0, %",
    "likely": "likely objects",
    "likely > 0": "> 0, %",
}
TRAINED = {"told apart": "training rows told apart, %"}
SAYING = {
    "pairs right": "contrast pairs right % ↑",
    "answered alike": "answered alike % ↓",
    **headings("object F1", "CHAIR_i", "hallucinated", "coverage", "POPE F1", "yes", "words"),
}
COMPARED = {
    "own - other": "log p own - other",
    "own - weakened": "log p own - weakened",
    "pairs right": "contrast pairs right",
    "object F1": "object F1",
    "POPE F1": "POPE F1",
}
BASELINE = slug(DPO.name)
STARTS = {SFT: "SFT (the starts)", f"{SFT}-grey": "SFT, asked on grey pictures"}
NAMES = {slug(arm.name): arm.name for arm in ARMS}
HEADINGS: Mapping[Rows, str] = {"contrast": "Contrast rows", "pairs": "Ordinary pairs"}
ABOUT = """All arms of a seed train the same SFT model for {steps} steps of {batch} rows, with the beta and the learning rate that a search
of their own found best; the search has as many runs for every arm, on other rows and scenes than these tables, and goes by the mean of
captions' object F1 and contrast pairs right. Means over seeds with 95% intervals (Student's t); differences are paired by seed, with the
p-value of the t-test and no correction for looking at many. A seed draws start, rows and order.

log p and h (log p - the start's) are of the chosen answer, in nats, on 300 held-out contrast rows: given its own image, the other one,
which differs in one object and makes the answer false, or a crop of 1 to 20% of the own one. "> 0" is the share of rows where the
difference is positive. A contrast pair is right if one question on its two images is answered rightly on both."""


def seeing_table(runs: page.Runs, columns: Mapping[str, str]) -> str:
    """Lay out arms by what the image is worth to them; first the starts, where they are among the runs."""
    names = {SFT: STARTS[SFT], **NAMES}
    return markdown_table(["arm", "seeds", *columns.values()], page.arm_rows(runs, names, columns).values())


def saying_table(runs: page.Runs) -> str:
    """Lay out arms by what they say; first the starts, with their images and without."""
    return markdown_table(["arm", "seeds", *SAYING.values()], page.arm_rows(runs, STARTS | NAMES, SAYING).values())


def differences_table(runs: page.Runs, others: Mapping[str, str], *, name: str) -> str:
    """Lay out arms' differences from other arms of the same seeds.

    Args:
        runs: Of both.
        others: Arm -> the one that is taken from it.
        name: Heads the arms.
    """
    shared = {arm: base for arm, base in others.items() if set(runs.get(arm, {})) & set(runs.get(base, {}))}
    rows = [[NAMES[arm], *(page.compare_metric(runs[arm], runs[base], key) for key in COMPARED)] for arm, base in shared.items()]
    return markdown_table([name, *COMPARED.values()], rows) if rows else ""


def rows_tables(runs: page.Runs) -> list[str]:
    """All tables of what trained on one kind of rows."""
    minus_dpo = differences_table(runs, {arm: BASELINE for arm in NAMES if arm != BASELINE}, name="arm minus DPO")
    by_asked = ['By what is asked, log p own - other; "likely objects" are rows where a usual companion is absent from one image:']
    return [
        "### What the image is worth to the answer",
        seeing_table(runs, SEEING),
        *by_asked,
        seeing_table(runs, ASKED),
        "Training rows whose chosen answer has the higher reward, in the last third of the steps:",
        seeing_table({arm: seeds for arm, seeds in runs.items() if arm in NAMES}, TRAINED),
        "### What the model says",
        saying_table(runs),
        *(["Paired over seeds:", minus_dpo] if minus_dpo else []),
    ]


def between_rows(contrast: page.Runs, pairs: page.Runs) -> str:
    """Lay out what contrast rows change, arm by arm."""
    both = {**contrast, **{f"{arm} on pairs": seeds for arm, seeds in pairs.items()}}
    return differences_table(both, {arm: f"{arm} on pairs" for arm in NAMES}, name="contrast rows minus pairs")


def write_page(options: argparse.Namespace) -> Path:
    """Write the measured part of ``image_terms.md``; what has no finished run is left out."""
    out = options.out
    parts = [
        "```\npython -m scripts.studies.image_terms --out runs/studies/image_terms --processes 2 --report docs/studies\n```",
        ABOUT.format(steps=count_steps(quick=options.quick, smoke=options.smoke), batch=BATCH),
    ]
    found = {rows: page.read_runs(out / "cells" / rows, read=read_metrics) for rows in HEADINGS}
    for rows, runs in found.items():
        if runs:
            parts += [f"## {HEADINGS[rows]}", *rows_tables(runs)]
    if table := between_rows(found["contrast"], found["pairs"]):
        parts += ["## Contrast rows against ordinary pairs", "Paired over seeds:", table]
    searches = {(arm.name, "beta"): scores for arm in ARMS if not arm.searched_as and (scores := read_search(arm, out))}
    if searches:
        rates = " and ".join(page.learning_rates(searches.values()))
        about = f"Mean of object F1 and contrast pairs right on 100 validation scenes each, one seed; learning rates {rates}."
        parts += ["## The search on contrast rows", about, page.search_table(searches, name="arm")]
    return page.write_measured(options.report / "image_terms.md", "Image terms on the embedded world", parts)

"""What the study of a trained rubric judge compares, and its page."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmalign.files import read_json
from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.study import SFT
from scripts.studies.world import headings, object_f1

JUDGES = {
    "judge-sft": "SFT on the world's rubrics",
    "judge-more": "then SFT on its own right rubrics (control)",
    "judge-dpo": "then DPO on its own rubrics, right against wrong",
}
POLICIES = {
    "dpo": "DPO on the labels",
    "smpo-judge": "SmPO on the judge's margins",
    "smpo-world": "SmPO on the world's margins",
}
RIGHT = "right "
"""Before the kind of a fault: a metric of the rubrics about it."""
JUDGED = {
    "right": "right % ↑",
    "inconsistent": "inconsistent % ↓",
    "first": "prefers the first % (true 50)",
    "read": "pairs with a margin % ↑",
    "agrees": "margin towards the right one % ↑",
}
SAID = headings("object F1", "hallucinated", "CHAIR_i", "coverage", "POPE F1")
ABOUT = """A rubric is right where it is consistent and names the better response; each pair is shown in both orders, and has a margin
where both have a consistent rubric. SFT: {judge_steps} steps of {batch} rubrics about {judge_pairs:,} pairs, written by the world. Then
{own_steps} steps on the judge's own rubrics, four for each order of {own_pairs:,} other pairs. Judged are {held_out:,} held-out pairs, one
rubric each at temperature 0.1. Policies: {policy_steps} steps of {batch} of {target_pairs:,} pairs, one in five with its label turned
round; all arms train on the pairs that the judge, the one of the three that is right most often, gives a margin. Means over seeds with 95%
intervals (Student's t); differences are paired by seed. Nothing was searched."""


@dataclass(frozen=True)
class Cell:
    """One judge or one policy of a seed."""

    name: str
    seed: int

    def path(self, out: Path) -> Path:
        """The file of the finished run."""
        return out / "cells" / str(self.seed) / f"{self.name}.json"


def write_page(options: argparse.Namespace, about: Mapping[str, int]) -> Path:
    """Write the measured part of ``rubric_judge.md``; what has no finished run is left out."""
    command = "python -m scripts.studies.rubric_judge --out runs/studies/rubric_judge --processes 2 --report docs/studies"
    parts = [f"```\n{command}{' --quick' if options.quick else ''}\n```", ABOUT.format(**about)]
    runs = page.read_runs(options.out / "cells", read=_read)
    judges = page.arm_rows(runs, JUDGES, JUDGED)
    if judges:
        parts += ["## Judges", markdown_table(["judge", "seeds", *JUDGED.values()], judges.values())]
        first = runs[next(iter(judges))]
        kinds = sorted(key for key in next(iter(first.values())) if key.startswith(RIGHT))
        parts += ["Right rubrics by fault, %:"]
        names = [key.removeprefix(RIGHT) for key in kinds]
        parts.append(markdown_table(["judge", "seeds", *names], page.arm_rows(runs, JUDGES, kinds).values()))
        parts += _differences(runs, JUDGES, "judge-sft", JUDGED)
        parts += _differences(runs, {"judge-dpo": JUDGES["judge-dpo"]}, "judge-more", JUDGED)
    policies = page.arm_rows(runs, {SFT: "SFT (the starts)", **POLICIES}, SAID)
    if policies:
        parts += ["## Policies", markdown_table(["arm", "seeds", *SAID.values()], policies.values())]
        parts += _differences(runs, POLICIES, "dpo", SAID)
    return page.write_measured(options.report / "rubric_judge.md", "A rubric judge, trained and used, on the embedded world", parts)


def _read(path: Path) -> dict[str, float]:
    metrics: dict[str, float] = dict(read_json(path))
    return metrics | ({"object F1": object_f1(metrics)} if "CHAIR_i" in metrics else {})


def _differences(runs: page.Runs, names: Mapping[str, str], base: str, columns: Mapping[str, str]) -> list[str]:
    others = [name for name in names if name != base and base in runs and set(runs.get(name, {})) & set(runs[base])]
    rows = [[names[name], *(page.compare_metric(runs[name], runs[base], key) for key in columns)] for name in others]
    title = f"Minus {(JUDGES | POLICIES)[base]}, paired over seeds:"
    return [title, markdown_table(["", *columns.values()], rows)] if rows else []

"""The page of the starts and the numbers of pairs: a table for each, and which of the paper's claims are seen in them."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.objectives_axes import INSTRUCT_STEPS, NAMES, NUM_PAIRS, SFT_STEPS, STARTS
from scripts.studies.objectives_grid import count_steps
from scripts.studies.world import BATCH, headings, read_metrics

COLUMNS = headings("object F1", "CHAIR_i", "coverage", "POPE F1") | {"attribute": "colour %", "count": "number %", "relation": "place %"}
ABOUT = """All train for {steps} steps of {batch} easy-skewed, clean pairs, with the strength and the learning rate that the objective's
search found on the start `sft`; fewer pairs are seen more often. Means over seeds with 95% intervals. `none`: the composed model
after {none} steps of SFT. `instruct`: `sft` after {instruct} more steps on its chats alone. The starts and the rules are ours."""


class Claim(NamedTuple):
    """What the paper says, what is compared here, and what came of it."""

    claim: str
    rule: str
    verdict: str


Found = Mapping[tuple[str, int], page.Runs]
"""(start, number of pairs) -> the finished runs."""


def judge_claims(found: Found) -> list[Claim]:
    """Say of three claims of the paper whether they are seen in the finished runs."""
    return [_judge_sizes(found), _judge_kto(found), _judge_instruct(found)]


def _judge_sizes(found: Found) -> Claim:
    differences = [
        page.compare_metric(runs[name], found[start, 1000][name], "object F1")
        for (start, size), runs in found.items()
        if size == NUM_PAIRS and (start, 1000) in found
        for name in sorted(set(runs) & set(found[start, 1000]))
    ]
    more = sum(one.mean > one.half_width for one in differences)
    verdict = _verdict(not more, f"{more} of {len(differences)} gain", differences)
    return Claim("1,000 to 10,000 pairs suffice", f"no objective gains object F1 from 1,000 to {NUM_PAIRS:,} beyond its interval", verdict)


def _judge_kto(found: Found) -> Claim:
    best = [max(runs, key=lambda name: page.estimate_metric(runs[name], "object F1").mean) for runs in found.values() if "kto_pair" in runs]
    first = best.count("kto_pair")
    verdict = ("seen" if 2 * first > len(best) else "not seen") + f": first in {first} of {len(best)}" if best else "not measured"
    return Claim("KTO is best in most cases", "`kto_pair` has the highest mean object F1 in more than half of the tables", verdict)


def _judge_instruct(found: Found) -> Claim:
    differences = [
        page.compare_metric(runs[name], found["sft", size][name], "POPE F1")
        for (start, size), runs in found.items()
        if start == "instruct" and ("sft", size) in found
        for name in sorted(set(runs) & set(found["sft", size]))
    ]
    changed = sum(abs(one.mean) > one.half_width for one in differences)
    verdict = _verdict(2 * changed > len(differences), f"{changed} of {len(differences)} differ", differences)
    return Claim(
        "an instruct start changes truthfulness", "POPE F1 after `instruct` and after `sft` differs beyond its interval in most", verdict
    )


def _verdict(seen: bool, count: str, differences: Sequence[page.Difference]) -> str:
    """Seen or not, unless there is no interval to tell by."""
    if not differences or any(math.isnan(one.half_width) for one in differences):
        return "not measured"
    return f"{'seen' if seen else 'not seen'}: {count}"


def axis_table(runs: page.Runs, start: page.Metrics, name: str) -> str:
    """Lay out the objectives from one start with one number of pairs."""
    rows = [page.start_row(name, start, COLUMNS), *page.arm_rows(runs, {arm: arm for arm in NAMES}, COLUMNS).values()]
    return markdown_table(["objective", "seeds", *COLUMNS.values()], rows)


def write_axes_page(options: argparse.Namespace) -> Path:
    """Write ``objectives_axes.md`` from the finished runs of all starts and sizes."""
    folder = options.out / "axes"
    keys = [(start, int(size.name)) for start in STARTS for size in sorted(folder.glob(f"{start}/*"), key=lambda path: int(path.name))]
    found = {(start, size): page.read_runs(folder / start / str(size), read=read_metrics) for start, size in keys}
    steps = count_steps(quick=options.quick, smoke=options.smoke)
    parts = [
        "```\npython -m scripts.studies.objectives --starts sft,none,instruct --num-pairs 300,1000,3000 --report docs/studies\n```",
        ABOUT.format(steps=steps, batch=BATCH, none=SFT_STEPS, instruct=INSTRUCT_STEPS),
        "## What the paper says",
        markdown_table(["claim", "rule", "here"], judge_claims(found), text=(0, 1, 2)),
    ]
    for (start, size), runs in found.items():
        measured = read_metrics(folder / f"{start}.json")
        parts += [f"## From `{start}`, {size:,} pairs", axis_table(runs, measured, f"the start `{start}`")]
    return page.write_measured(options.report / "objectives_axes.md", "Starts and numbers of pairs on the embedded world", parts)

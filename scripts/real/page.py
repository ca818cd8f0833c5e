"""The measured part of docs/studies/real.md, or real_short.md, from whatever cells are finished: arms, image terms, own answers, starts."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmalign.files import read_json, read_json_object
from mmalign.tables import markdown_table
from scripts.real.arms import AXES, AXIS_STARTS, NAMES, OWN_ARMS
from scripts.real.cells import IMAGE_TERMS, OWN_ANSWERS, PREFERENCE, STARTS, cells_folder
from scripts.real.run import BASELINES, MODELS
from scripts.real.steps import COLUMNS, measured
from scripts.studies import page
from scripts.studies.image_terms_grid import SFT
from scripts.studies.image_terms_page import ASKED, SEEING, seeing_table
from scripts.studies.image_terms_page import BASELINE as WITHOUT_IMAGES
from scripts.studies.image_terms_page import NAMES as OBJECTIVES

COMPARED = ("hallucinated", "CHAIR_i", "coverage", "POPE F1", "existence F1")
ALIKE = "answers alike, % of photographs"
COST = ("minutes", "CPU minutes", "peak memory, GB", ALIKE)
BASELINE = "dpo"
_RECORDS = (f"{BASELINE}/mmalign_run.json", "difficulty/difficulty.json")


def write_page(options: argparse.Namespace) -> Path:
    """Write what is finished in the main run's folder.

    Raises:
        SystemExit: If nothing is.
    """
    out = options.out
    studies = (preference_parts, image_terms_parts, own_answers_parts, starts_parts)
    parts = [part for list_parts in studies for part in list_parts(out)]
    if not parts:
        raise SystemExit(f"no finished cell in {out}: nothing to report")
    # What the short size measures stands apart: its start has seen half of what the other's has.
    name = "real_short" if options.steps == "short" else "real"
    return page.write_measured(options.report / f"{name}.md", "Pretrained weights and photographs", parts)


def preference_parts(out: Path) -> list[str]:
    """Preference training: all arms beside the start and the baselines, their differences, and what they cost."""
    runs, start = page.read_runs(cells_folder(out, PREFERENCE)), measured(out / "sft")
    if not runs:
        return []
    baselines = {name: measured(out / model) for model, name in BASELINES.items()}
    first = {MODELS["sft"]: start, **{name: values for name, values in baselines.items() if values}}
    names = {arm: name for arm, name in NAMES.items() if arm in runs}
    size = describe_size(out)
    parts = ["## Preference training", *([size] if size else []), arms_table(runs, names, first), "Minus the start:"]
    parts.append(differences_table({name: (runs[arm], dict.fromkeys(runs[arm], start)) for arm, name in names.items()}))
    if BASELINE in runs:
        others = {name: (runs[arm], runs[BASELINE]) for arm, name in names.items() if arm != BASELINE}
        parts += ["Minus DPO, on the same seeds:", differences_table(others)] if others else []
    return [*parts, *cost_parts(runs, names)]


def cost_parts(runs: page.Runs, names: Mapping[str, str]) -> list[str]:
    """What the trainings took, as far as it was measured."""
    keys = [key for key in COST if any(key in one for arm in names for one in runs[arm].values())]
    rows = [[name, *(_mean(runs[arm], key) for key in keys)] for arm, name in names.items()]
    rows = [row for row in rows if any(row[1:])]
    return ["### Cost of training", markdown_table(["arm", *keys], rows)] if rows else []


def _mean(seeds: page.Seeds, key: str) -> str:
    measured_ones = {seed: one for seed, one in seeds.items() if key in one}
    return f"{page.estimate_metric(measured_ones, key).mean:.2f}" if measured_ones else ""


def describe_size(out: Path) -> str:
    """Say how much the start and the arms were trained, from what the main run left; empty where its records are gone."""
    sft = out / "sft" / "mmalign_run.json"
    # The main run's, or those of a seed.
    dpo, difficulty = (next(iter(sorted([*out.glob(name), *out.glob(f"seeds/*/{name}")])), None) for name in _RECORDS)
    if not (sft.is_file() and dpo and difficulty):
        return ""
    start, arm, summary = map(read_json_object, (sft, dpo, difficulty))
    proxies = {name: 100 * proxy["accuracy"] for name, proxy in summary["statistics"]["all"].items()}
    rows = [
        ["steps of the start", f"{start['steps']:,} of {start['batch']} chats"],
        ["steps of each arm", f"{arm['steps']:,} of {arm['batch']} pairs, of {summary['num_scored']:,}"],
        ["learning rate, full weights", f"{arm['options']['learning_rate']:g}"],
        *([f"pairs that the {name} proxy orders rightly", f"{value:.1f}%"] for name, value in proxies.items()),
    ]
    return markdown_table(["", "this run"], rows, text=(0, 1))


def image_terms_parts(out: Path) -> list[str]:
    """Objectives that compare images: what the photograph is worth to the answer, and what the model says."""
    runs, start = page.read_runs(cells_folder(out, IMAGE_TERMS)), measured(out / "sft")
    if not runs:
        return []
    names = {arm: name for arm, name in OBJECTIVES.items() if arm in runs}
    seeing = {SFT: {0: read_json(out / IMAGE_TERMS / f"{SFT}.json")}, **runs}
    asked = {key: heading for key, heading in ASKED.items() if not key.startswith("likely")}
    others = {name: (runs[arm], runs[WITHOUT_IMAGES]) for arm, name in names.items() if arm != WITHOUT_IMAGES and WITHOUT_IMAGES in runs}
    return [
        "## Terms over images, on pairs of similar photographs",
        "### What the photograph is worth to the answer",
        seeing_table(seeing, SEEING),
        "By what is asked, log p own - other:",
        seeing_table(seeing, asked),
        "### What the models say",
        arms_table(runs, names, {MODELS["sft"]: start}),
        *(["Minus DPO on the same rows:", differences_table(others)] if others else []),
    ]


def own_answers_parts(out: Path) -> list[str]:
    """Learning from own answers: all arms beside the start, the claims as differences, and what they cost."""
    runs, start = page.read_runs(cells_folder(out, OWN_ANSWERS)), measured(out / "sft")
    if not runs:
        return []
    names = {key: arm.name for key, arm in OWN_ARMS.items() if key in runs}
    first = {MODELS["sft"]: start, "DPO (the teacher of mimic)": measured(out / "dpo")}
    pairs = [(key, other) for key in names for other in OWN_ARMS[key].others if other in runs]
    compared = {f"{names[key]} - {names[other]}": (runs[key], runs[other]) for key, other in pairs}
    return [
        "## Own answers",
        arms_table(runs, names, first),
        *([differences_table(compared)] if compared else []),
        *cost_parts(runs, names),
    ]


def starts_parts(out: Path) -> list[str]:
    """Six objectives from three starts, and with fewer pairs: a table of each."""
    runs = page.read_runs(cells_folder(out, STARTS))
    groups: dict[tuple[str, int], dict[str, str]] = {}
    for name, arm in AXES.items():
        if name in runs:
            groups.setdefault((arm.start, arm.part), {})[name] = arm.objective
    parts = ["## Starts and numbers of pairs"] if groups else []
    for (start, part), names in groups.items():
        seen = "pairs seen once" if part == 1 else f"1 in {part} of them, seen {part} times"
        folder = out / "sft" if start == "sft" else out / STARTS / start
        parts += [f"### From {AXIS_STARTS[start]}, {seen}", arms_table(runs, names, {AXIS_STARTS[start]: measured(folder)})]
    return parts


def arms_table(runs: page.Runs, names: Mapping[str, str], first: Mapping[str, page.Metrics]) -> str:
    """Lay out arms by metrics below what was measured once; columns that not all arms have are left out."""
    keys = [key for key in COLUMNS if all(key in one for arm in names for one in runs[arm].values())]
    weights = [key for key in ("weights", "activated") if all(key in one for arm in names for one in runs[arm].values())]
    rows: list[Sequence[object]] = [
        [name, "", *("" for _ in weights), *(f"{one[key]:.1f}" if key in one else "" for key in keys)] for name, one in first.items()
    ]
    for arm, row in page.arm_rows(runs, names, keys).items():
        one = next(iter(runs[arm].values()))
        rows.append([*row[:2], *(f"{one[key] / 1e6:.0f}" for key in weights), *row[2:]])
    headings = [*(f"{key}, M" for key in weights), *(COLUMNS[key].heading for key in keys)]
    return markdown_table(["arm", "seeds", *headings], rows)


def differences_table(pairs: Mapping[str, tuple[page.Seeds, page.Seeds]]) -> str:
    """Lay out differences of two arms over the seeds that both have."""
    shared = {name: two for name, two in pairs.items() if set(two[0]) & set(two[1])}
    keys = [key for key in COMPARED if all(key in one for one in _all_metrics(shared.values()))]
    rows = [[name, *(page.compare_metric(*two, key) for key in keys)] for name, two in shared.items()]
    return markdown_table(["", *(COLUMNS[key].heading.strip(" ↓↑") for key in keys)], rows)


def _all_metrics(pairs: Iterable[tuple[page.Seeds, page.Seeds]]) -> Iterable[page.Metrics]:
    return [one for two in pairs for seeds in two for one in seeds.values()]

"""The measured part of docs/studies/real_mod.md: students of LLaVA-MoD on photographs beside their teacher."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from mmalign.files import read_json
from mmalign.tables import markdown_table
from scripts.real.arms import STUDENTS
from scripts.real.cells import MOD, cells_folder
from scripts.real.page import arms_table, differences_table
from scripts.studies import page
from scripts.studies.llava_mod import MIMIC_BEATS_SFT, REFERENCES, SPARSE_BEATS_DENSE
from scripts.studies.study import slug

DIFFERENT, CUT = "different captions %", "captions cut at the longest length %"
CLAIMS = {"Mimicking and SFT": MIMIC_BEATS_SFT, "Sparse and dense": SPARSE_BEATS_DENSE, "References": REFERENCES}


def teacher_path(out: Path) -> Path:
    """The file of the teacher's numbers, beside those of the seeds."""
    return cells_folder(out, MOD) / "teacher.json"


def read_variety(model: Path) -> dict[str, float]:
    """Measure whether captions still are captions: a model that says the same of all photographs may name nothing that is absent."""
    result = read_json(model / "eval" / "chair.json")
    return {name: 100 * result[key] / result["num_answers"] for name, key in ((DIFFERENT, "num_different"), (CUT, "num_at_limit"))}


def write_page(options: argparse.Namespace) -> Path:
    """Write all finished students beside their teacher, and the claims as differences.

    Raises:
        SystemExit: If nothing is finished in the main run's folder.
    """
    runs = page.read_runs(cells_folder(options.out, MOD))
    names = {slug(name): name for name in STUDENTS if slug(name) in runs}
    if not names:
        raise SystemExit(f"no finished cell in {options.out}: nothing to report")
    teacher = read_json(teacher_path(options.out))
    against = {name: (runs[arm], dict.fromkeys(runs[arm], teacher)) for arm, name in names.items()}
    parts = [arms_table(runs, names, {"teacher (the start)": teacher}), "Minus the teacher:", differences_table(against)]
    parts += ["Whether captions still are captions:", variety_table(runs, names, teacher)]
    for title, pairs in CLAIMS.items():
        found = {f"{a} - {b}": (runs[slug(a)], runs[slug(b)]) for a, b in pairs if slug(a) in runs and slug(b) in runs}
        parts += [f"## {title}", differences_table(found)] if found else []
    return page.write_measured(options.report / "real_mod.md", "LLaVA-MoD on photographs", parts)


def variety_table(runs: page.Runs, names: Mapping[str, str], teacher: page.Metrics) -> str:
    """Lay out how many captions differ, and how many don't end by themselves."""
    keys = (DIFFERENT, CUT)
    rows = [["teacher (the start)", *(f"{teacher[key]:.1f}" for key in keys)]]
    rows += [[name, *(str(page.estimate_metric(runs[arm], key)) for key in keys)] for arm, name in names.items()]
    return markdown_table(["arm", *keys], rows)

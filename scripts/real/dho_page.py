"""The measured part of docs/studies/real_dho.md: two heads on photographs under a zero-shot teacher."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from mmalign.tables import markdown_table
from scripts.real.cells import cells_folder
from scripts.real.dho_cells import DHO, FORMS, IMAGES, LABELS, SINGLE, STUDENTS, TEACHER, Cell
from scripts.studies import page

HEADS = {"ce_head": "CE head alone", "kd_head": "KD head alone", "published": "mixing 0.5 / 0.5"}


def write_page(options: argparse.Namespace) -> Path:
    """Write every form by the number of labels, and what two heads gain, for each set of photographs and each student.

    Raises:
        SystemExit: If nothing is finished in the main run's folder.
    """
    runs, parts = page.read_runs(cells_folder(options.out, DHO)), []
    for images, about in IMAGES.items():
        for student, network in STUDENTS.items():
            named = {(labels, form): Cell(images, student, labels, form, 0).name for labels in about.labels for form in FORMS}
            found = {key: runs[name] for key, name in named.items() if name in runs}
            if found:
                teacher = next(one[TEACHER] for seeds in found.values() for one in seeds.values())
                parts += [f"## {about.title}: {network.title}", f"The zero-shot teacher: {teacher:.1f}%.", forms_table(found)]
    if not parts:
        raise SystemExit(f"no finished cell in {options.out}: nothing to report")
    first = "Accuracy on test photographs, %: mean ± 95% interval over seeds (seeds)."
    return page.write_measured(options.report / "real_dho.md", "Two heads on photographs under a zero-shot teacher", [first, *parts])


def forms_table(found: Mapping[tuple[str, str], page.Seeds]) -> str:
    """Lay out forms by labels, the fewest first, and DHO's gain over the single head that validation images prefer."""
    present = [labels for labels in LABELS if any(labels == one for one, _ in found)]

    def shown(labels: str, form: str, key: str) -> str:
        seeds = {seed: one for seed, one in found.get((labels, form), {}).items() if key in one}
        return f"{page.estimate_metric(seeds, key)} ({len(seeds)})" if seeds else ""

    rows = [[name, *(shown(labels, form, "accuracy") for labels in present)] for form, name in FORMS.items()]
    rows += [[f"DHO, {name}", *(shown(labels, "dual-head", key) for labels in present)] for key, name in HEADS.items()]
    gains = {labels: (_accuracies(found.get((labels, "dual-head"), {})), best_single_heads(found, labels)) for labels in present}
    shared = {labels: page.compare(*two) if set(two[0]) & set(two[1]) else "" for labels, two in gains.items()}
    rows.append(["DHO minus the best single head", *map(str, shared.values())])
    return markdown_table(["form", *present], [row for row in rows if any(row[1:])])


def best_single_heads(found: Mapping[tuple[str, str], page.Seeds], labels: str) -> dict[int, float]:
    """Test accuracy by seed of the single head that validation images prefer, where all have run."""
    forms = [found.get((labels, form), {}) for form in SINGLE]
    seeds = set.intersection(*(set(one) for one in forms))
    return {seed: max((one[seed] for one in forms), key=lambda run: run["validation"])["accuracy"] for seed in sorted(seeds)}


def _accuracies(seeds: page.Seeds) -> dict[int, float]:
    return {seed: one["accuracy"] for seed, one in seeds.items()}

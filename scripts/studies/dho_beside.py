"""What stands beside the map of the study of two heads: closed forms, rivals, and classes from domains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.tables import markdown_table
from scripts.studies import page
from scripts.studies.dho_cells import CLOSED_FORM, CORNERS, DISCOVERED, DOMAIN_LABELS, RIVALS, Arm, Results, pick, scores

MARK = f"{page.MARK_START} beside the map -->"
_HEADS = {"DHO, CE head alone": "ce_head", "DHO, KD head alone": "kd_head", "DHO, tuned mixing": "mixed"}
_RIVALS = {
    "CE only": Arm("ce-only"),
    "KD only": Arm("kd-only"),
    "single head, w = 0.5": Arm("single-head"),
    **{name: Arm(form) for name, form in zip(("PCGrad, w = 0.5", "SSKD, w = 0.5", "DHKD, w = 0.5"), RIVALS, strict=True)},
    # The student that closed forms are fitted on is DHO's own.
    "**DHO, tuned mixing**": Arm("closed-form", head="mixed"),
}


def show(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean ± half its 95% interval (seeds); empty without values."""
    if not values:
        return ""
    found = page.estimate(values)
    return f"{'+' * (sign and found.mean >= 0)}{found} ({found.count})"


def show_scores(cells: Results, labels: str, arm: Arm, **fields: Any) -> str:
    """The same of an arm's metric, by default its accuracy."""
    return show(list(scores(cells, labels, arm, **fields).values()))


def closed_form_table(cells: Results) -> str:
    """Heads in closed form on DHO students' features, beside those students' own heads; the same runs."""
    return _corner_table(cells, "head", {name: Arm("closed-form", head=head) for name, head in {**_HEADS, **_own_names()}.items()})


def rivals_table(cells: Results) -> str:
    """Other ways to learn from labels and a teacher together, on the same splits."""
    return _corner_table(cells, "form", _RIVALS)


def _own_names() -> dict[str, str]:
    return {name: name for name in CLOSED_FORM}


def _corner_table(cells: Results, what: str, arms: dict[str, Arm]) -> str:
    rows = [[name, *(show_scores(cells, labels, arm, teacher=teacher) for labels, teacher in CORNERS)] for name, arm in arms.items()]
    rows = [row for row in rows if any(row[1:])]
    return markdown_table([what, *(f"{labels}, {teacher} teacher" for labels, teacher in CORNERS)], rows)


def discovered_table(cells: Results) -> str:
    """Classes from domains and clusters as teachers: their accuracy, and that of students who learn from them or from labels alone."""
    rows = []
    for teacher in DISCOVERED:
        rows.append([f"{teacher}: the teacher itself", *(show(_teachers(cells, labels, teacher)) for labels in DOMAIN_LABELS)])
        for name, form in (("KD only", "kd-only"), ("DHO, tuned mixing", "dual-head")):
            shown = [show_scores(cells, labels, Arm(form), teacher=teacher, data="domains") for labels in DOMAIN_LABELS]
            rows.append([f"{teacher}: {name}", *shown])
    rows.insert(0, ["CE only", *(show_scores(cells, labels, Arm("ce-only"), data="domains") for labels in DOMAIN_LABELS)])
    errors = [[100 * run["teachers"]["shares_l1"] for run in _runs(cells, labels, "discovered")] for labels in DOMAIN_LABELS]
    rows.append(["discovered: L1 of p(class | domain), points", *map(show, errors)])
    return markdown_table(["teacher, form", *(f"{labels} of the labels" for labels in DOMAIN_LABELS)], rows)


def _runs(cells: Results, labels: str, teacher: str) -> list[dict[str, Any]]:
    return list(pick(cells, labels, Arm("dual-head"), teacher=teacher, data="domains").values())


def _teachers(cells: Results, labels: str, teacher: str) -> list[float]:
    return [100 * run["teachers"][teacher] for run in _runs(cells, labels, teacher)]


def write_beside(cells: Results, path: Path) -> None:
    """Write the second measured part of the page, as far as there are cells for it."""
    parts = ["## Beside the map, %: mean ± 95% interval over seeds (seeds)"]
    if any(cell.form == "closed-form" for cell in cells):
        parts += ["### Heads in closed form on the DHO student's features", closed_form_table(cells)]
    if any(cell.form in RIVALS for cell in cells):
        parts += ["### Rivals of two heads", rivals_table(cells)]
    if any(cell.data == "domains" for cell in cells):
        parts += ["### Classes from domains: four classes in six domains", discovered_table(cells)]
    if len(parts) > 1:
        parts.append(f"{sum(cell.beside for cell in cells)} cells.")
        page.write_measured(path, "When do two heads pay?", parts, mark=MARK)

"""RePOPE: POPE's questions with corrected labels (arXiv:2504.15707); POPE's own answers give both numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mmalign.errors import UserError
from mmalign.evaluation.benchmark import find_question_files
from mmalign.evaluation.items import Item, make_item
from mmalign.evaluation.metrics import Formula, Metric, count, prefixed
from mmalign.evaluation.pope import SPLITS, Pope, load_pope, read_pope
from mmalign.evaluation.yes_no import binary_values, parse_anywhere, parse_strict
from mmalign.options.evaluate import EvaluateOptions, Mode

# Before what an answer adds by POPE's label.
BEFORE = "pope_"


def _rows(label: str, name: str) -> Metric:
    return Metric(label, formula=count(name), resampled=None)


@dataclass(frozen=True)
class Repope(Pope):
    """POPE's questions and what RePOPE says of them: the label kept or changed, or the question removed.

    ``pope/`` are the metrics by POPE's labels, of all questions; the others leave the removed ones out. Both are read alike: what is
    neither yes nor no counts nowhere in the official reading, and is wrong in the strict one.

    Attributes:
        corrected: Whether the answer is yes, by id; what was removed is not there.
    """

    name: ClassVar[str] = "repope"
    title: ClassVar[str] = "RePOPE: POPE's questions, labels corrected"
    source: ClassVar[str] = "annotations of github.com/YanNeu/RePOPE, and POPE's files and images in DATA/pope"
    averages: ClassVar[Mapping[str, str]] = {
        "repope/f1": "plain mean of the splits, labels of RePOPE",
        "repope/merged/f1": "all splits together, labels of RePOPE",
        "repope/pope/f1": "plain mean of the splits, labels of POPE, read as RePOPE reads",
    }
    # The corrected labels are not half yes and half no.
    metrics: ClassVar[Mapping[str, Metric]] = {
        **Pope.metrics,
        "yes_ratio": replace(Pope.metrics["yes_ratio"], better=None),
        "kept": _rows("Questions with POPE's label", "kept"),
        "changed": _rows("Questions with another label", "changed"),
        "removed": _rows("Questions removed", "removed"),
    }
    corrected: Mapping[str, bool]

    @classmethod
    def load(cls, options: EvaluateOptions) -> "Repope":
        return load_repope(options.data, answers=options.answers)

    @classmethod
    def formulas(cls, groups: Sequence[str]) -> dict[str, Formula]:
        """As of POPE, by both labels."""
        before = {f"pope/{name}": prefixed(BEFORE, formula) for name, formula in Pope.formulas(groups).items()}
        return super().formulas(groups) | before

    def images_in(self, folder: Path) -> Path:
        """Beside POPE's files where there are none beside RePOPE's."""
        own = super().images_in(folder)
        beside = self.files[0].parent / "images"
        return beside if beside.is_dir() and not own.is_dir() else own

    def items(self, answers: Mapping[str, str], *, mode: Mode, judgements: Mapping[str, str] | None = None) -> list[Item]:
        """One item per question of POPE; of a removed one nobody says what is right."""
        parse = parse_anywhere if mode == "official" else parse_strict
        items = []
        for one, question in self.answered(answers):
            reply, label = parse(answers[one.id]), self.corrected.get(one.id)
            values = {f"{BEFORE}{name}": value for name, value in _values(one.is_yes, reply, mode).items()}
            if label is not None:
                values |= _values(label, reply, mode)
            fate = "removed" if label is None else "kept" if label is one.is_yes else "changed"
            values |= {name: int(name == fate) for name in ("kept", "changed", "removed")}
            said = "yes" if one.is_yes else "no"
            shown = said if fate == "kept" else f"{'removed' if label is None else 'yes' if label else 'no'} (POPE: {said})"
            correct = None if label is None else reply is label
            items.append(make_item(question, answers[one.id], label=shown, correct=correct, group=one.split, values=values))
        return items


def _values(is_yes: bool, reply: bool | None, mode: Mode) -> dict[str, float]:
    values = binary_values(is_yes=is_yes, reply=reply)
    return {"unknown": 1} if mode == "official" and reply is None else values


def load_repope(source: Path, *, answers: Path | None = None) -> Repope:
    """Read RePOPE's files, ``coco_repope_{random,popular,adversarial}.json``, and POPE's of the same splits.

    Args:
        source: Folder of both, or of RePOPE's files; POPE's are then looked for in ``pope`` below and beside it.
        answers: The answers to be scored, which may lie in the same folder.

    Raises:
        ValueError: If one of both is missing or damaged, or RePOPE labels a question that POPE does not ask.
    """
    patterns = ("*repope*.json", "*repope*.jsonl", "annotations/*repope*.json")
    files = find_question_files(source, patterns, is_question=lambda row: {"text", "label"} <= set(row), answers=answers)
    if not files or "repope" not in files[0].name:
        raise UserError(f"no labels of RePOPE at {source}: expected files such as coco_repope_random.json")
    pope, labels = _load_pope_beside(source), read_pope(files, source)
    asked, splits = {one.id: one for one in pope.records}, {one.split for one in labels.records}
    if lacking := splits - {one.split for one in pope.records}:
        raise UserError(f"RePOPE's labels at {source} are of split {', '.join(sorted(lacking))}, which POPE's files lack")
    for one in labels.records:
        if one.id not in asked or (asked[one.id].image, asked[one.id].text) != (one.image, one.text):
            theirs = asked[one.id].text if one.id in asked else "not there"
            raise UserError(f"question {one.id} is {one.text!r} in RePOPE's files and {theirs!r} in POPE's; give both as released")
    records = [one for one in pope.records if one.split in splits]
    return Repope([*pope.files, *files], records, {one.id: one.is_yes for one in labels.records}, images=pope.images)


def _load_pope_beside(source: Path) -> Pope:
    folder = source if source.is_dir() else source.parent
    places = [folder, folder / "pope", folder.parent / "pope"]
    found = next((place for place in places if _holds_pope(place)), None)
    if found is None:
        raise UserError(f"POPE's questions are missing: put coco_pope_random.json and the others into {folder} or {places[2]}")
    return load_pope(found)


def _holds_pope(folder: Path) -> bool:
    names = [path.name for path in folder.glob("*pope_*.json*")] + [path.name for path in folder.glob("**/*.parquet")]
    return any("repope" not in name and (name.endswith(".parquet") or any(f"pope_{split}" in name for split in SPLITS)) for name in names)

"""RePOPE: labels kept, changed and removed by hand, both readings, the released files, and POPE's answers as its own."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmalign.evaluation.intervals import compute_intervals
from mmalign.evaluation.pope import PopeQuestion, load_pope
from mmalign.evaluation.repope import Repope, load_repope
from mmalign.evaluation.yes_no import parse_anywhere

SPLITS = ("random", "popular", "adversarial")


def make(labels: Sequence[tuple[bool, bool | None]]) -> Repope:
    """Questions of one split with POPE's label and RePOPE's; None is removed."""
    records = [PopeQuestion(f"random/{i}", "random", f"{i}.png", f"Is there {i}?", before) for i, (before, _) in enumerate(labels)]
    return Repope([], records, {f"random/{i}": after for i, (_, after) in enumerate(labels) if after is not None})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes", True), ("no", False), ("No, yes.", True), ("I cannot tell", False), ("eyes", True), ("", None), ("maybe", None)],
)
def test_the_original_looks_for_letters(answer: str, expected: bool | None) -> None:
    assert parse_anywhere(answer) is expected


def test_both_numbers_by_hand() -> None:
    # Kept yes, kept no, yes that became no, removed yes, kept yes.
    bench = make([(True, True), (False, False), (True, False), (True, None), (True, True)])
    answers = dict(zip(bench.required(), ["Yes", "No", "No", "No", "maybe"], strict=True))
    got = bench.score(answers, mode="official")
    # Of the three that are read and kept all are right; by POPE's labels two of four are.
    assert (got["repope/accuracy"], got["repope/f1"], got["repope/pope/accuracy"]) == (1.0, 1.0, 0.5)
    # One right yes of three that are: P 1, R 1/3.
    assert got["repope/pope/f1"] == pytest.approx(0.5)
    assert [got[f"repope/{name}"] for name in ("kept", "changed", "removed", "unknown", "pope/unknown")] == [3, 1, 1, 1, 1]
    strict = bench.score(answers, mode="strict")
    assert (strict["repope/accuracy"], strict["repope/pope/accuracy"]) == (0.75, 0.4)
    assert strict["repope/unknown"] == 1
    shown = [(item.label, item.correct) for item in bench.items(answers, mode="official")]
    assert shown == [("yes", True), ("no", True), ("no (POPE: yes)", True), ("removed (POPE: yes)", None), ("yes", False)]
    assert compute_intervals(Repope, bench.items(answers, mode="strict"), resamples=100)["repope/pope/f1"].value == strict["repope/pope/f1"]


@pytest.fixture(scope="module")
def released(shared_data: Path) -> Repope:
    return load_repope(shared_data / "benchmarks" / "repope")


def test_the_released_labels(released: Repope) -> None:
    """The counts of the paper's table: yes to no, no to yes, and what was removed."""
    assert (len(released.files), len(released.records), len(released.corrected)) == (6, 9000, 8185)
    changed = {(split, one.is_yes): 0 for split in SPLITS for one in released.records}
    removed = dict(changed)
    for one in released.records:
        label = released.corrected.get(one.id)
        removed[one.split, one.is_yes] += label is None
        changed[one.split, one.is_yes] += label is not None and label is not one.is_yes
    assert [changed[split, is_yes] for split in SPLITS for is_yes in (True, False)] == [139, 5, 139, 39, 139, 33]
    assert [removed[split, is_yes] for split in SPLITS for is_yes in (True, False)] == [207, 19, 207, 66, 207, 109]


def test_constant_answers_on_the_released_labels(released: Repope) -> None:
    got = released.score(dict.fromkeys(released.required(), "Yes"), mode="official")
    # Always yes: recall 1, and precision is the share of yes: what was yes, less what was corrected or removed, and what became yes.
    precision = [(1500 - 139 - 207 + more) / kept for more, kept in ((5, 2774), (39, 2727), (33, 2684))]
    assert [got[f"repope/{split}/f1"] for split in SPLITS] == pytest.approx([2 * p / (1 + p) for p in precision])
    assert got["repope/f1"] == pytest.approx(sum(2 * p / (1 + p) for p in precision) / 3)
    assert got["repope/always_yes/f1"] == got["repope/f1"]
    assert (got["repope/pope/f1"], got["repope/always_no/accuracy"]) == pytest.approx((2 / 3, 1 - sum(precision) / 3))
    pooled = (3 * (1500 - 139 - 207) + 5 + 39 + 33) / 8185
    assert got["repope/merged/f1"] == pytest.approx(2 * pooled / (1 + pooled))


def test_answers_to_pope_give_its_own_number(released: Repope, shared_data: Path) -> None:
    """One file of answers serves both; of plain answers both parsers read the same."""
    pope = load_pope(shared_data / "benchmarks" / "pope")
    assert released.questions() == pope.questions()
    answers = {one.id: "Yes" if one.is_yes or i % 7 == 0 else "No" for i, one in enumerate(pope.records)}
    got, before = released.score(answers, mode="official"), pope.score(answers, mode="official")
    assert {key: value for key, value in got.items() if key.startswith("repope/pope/")} == {
        f"re{key}".replace("repope/", "repope/pope/"): value for key, value in before.items() if "always" not in key
    }
    assert got["repope/f1"] < got["repope/pope/f1"]


def test_where_popes_files_lie(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "yes"}
    (tmp_path / "repope").mkdir()
    mine = tmp_path / "repope" / "coco_repope_random.json"
    mine.write_text(json.dumps({**row, "label": "no"}))
    with pytest.raises(ValueError, match="POPE's questions are missing: put coco_pope_random.json and the others into .*repope or .*pope"):
        load_repope(tmp_path / "repope")
    (tmp_path / "pope" / "images").mkdir(parents=True)
    (tmp_path / "pope" / "coco_pope_random.json").write_text(json.dumps(row))
    bench = load_repope(tmp_path / "repope")
    assert bench.images_in(tmp_path / "repope") == tmp_path / "pope" / "images"
    shutil.copy(mine, tmp_path / "pope")
    assert load_repope(tmp_path / "pope").corrected == bench.corrected == {"random/1": False}
    # POPE itself passes over the labels beside its own.
    assert load_pope(tmp_path / "pope").records[0].is_yes
    mine.write_text(json.dumps({**row, "text": "Is there a cat?"}))
    with pytest.raises(ValueError, match=r"question random/1 is 'Is there a cat\?' in RePOPE's files and 'Is there a dog\?' in POPE's"):
        load_repope(tmp_path / "repope")
    mine.unlink()
    with pytest.raises(ValueError, match="no labels of RePOPE at"):
        load_repope(tmp_path / "repope")

"""Scored answers: their sums give the scorers' numbers, on POPE's and CHAIR's own data too."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mmalign.evaluation.answers import Question
from mmalign.evaluation.hallusionbench import HallusionQuestion, load_hallusionbench
from mmalign.evaluation.intervals import compute_metrics
from mmalign.evaluation.items import (
    Item,
    binary_values,
    items_path,
    make_chair_items,
    make_hallusion_items,
    make_pope_items,
    read_items,
    write_items,
)
from mmalign.evaluation.pope import PopeQuestion, parse_official, parse_strict
from mmalign.runs.evaluate import make_items

CAPTIONS = {"a": "a dog and a dog and a cat", "b": "a car", "c": ""}
TRUTHS = {"a": {"dog"}, "b": {"car", "cat"}, "c": {"dog"}}


def find(caption: str) -> list[str]:
    return [word for word in caption.split() if word in {"dog", "cat", "car"}]


def locate(caption: str) -> list[tuple[str, int, int]]:
    found, start = [], 0
    for word in find(caption):
        start = caption.index(word, start)
        found.append((word, start, start + len(word)))
        start += len(word)
    return found


def build_pope(split: str, labels: str) -> list[PopeQuestion]:
    return [PopeQuestion(f"{split}/{i}", split, f"{i // 2}.png", f"Is there {i}?", label == "y") for i, label in enumerate(labels)]


def test_pope_by_hand() -> None:
    questions = build_pope("random", "yyynn") + build_pope("popular", "yn")
    replies = ["Yes", "No", "hm", "Yes", "No", "Yes", "No"]
    answers = {question.id: reply for question, reply in zip(questions, replies, strict=True)}
    items = make_pope_items(questions, answers, parse=parse_strict)
    assert [item.correct for item in items] == [True, False, False, False, True, True, True]
    got = compute_metrics("pope", items)
    # Random: TP 1, FP 1, three are yes: P 1/2, R 1/3, F1 2/5. Popular is all right.
    expected = {"accuracy": 2 / 5, "precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5, "yes_ratio": 2 / 5}
    for name, value in expected.items():
        assert got[f"pope/random/{name}"] == pytest.approx(value)
        mean = (value + (0.5 if name == "yes_ratio" else 1.0)) / 2
        assert got[f"pope/{name}"] == pytest.approx(mean)
    # The official parser takes "hm" for a yes.
    official = make_pope_items(questions, answers, parse=parse_official)
    assert compute_metrics("pope", official)["pope/random/accuracy"] == pytest.approx(3 / 5)
    assert len(make_pope_items(questions, {"random/0": "Yes"}, parse=parse_strict)) == 1


def test_f1_of_sums_is_the_harmonic_mean() -> None:
    rng = Random(0)
    pairs = [(rng.random() < 0.5, rng.choice([True, False, None])) for _ in range(200)]
    items = [
        Item(id=str(i), image="", question="", response="", label="", correct=None, values=binary_values(label=label, reply=reply))
        for i, (label, reply) in enumerate(pairs)
    ]
    got = compute_metrics("x", items)
    precision, recall = got["x/precision"], got["x/recall"]
    assert got["x/f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert precision == sum(label and reply is True for label, reply in pairs) / sum(reply is True for _, reply in pairs)
    assert got["x/accuracy"] == sum(label == reply for label, reply in pairs) / 200


def test_chair_by_hand() -> None:
    questions = [Question(name, f"{name}.jpg", "Describe.") for name in CAPTIONS]
    items = make_chair_items(questions, CAPTIONS, truths=TRUTHS, find=find, locate=locate)
    # a: two dogs right, a cat wrong; b: right; c: says nothing.
    assert [item.correct for item in items] == [False, True, True]
    assert items[0].wrong == ((22, 25),)
    assert CAPTIONS["a"][22:25] == "cat"
    assert [item.label for item in items] == ["dog", "car, cat", "dog"]
    assert compute_metrics("chair", items) == pytest.approx(
        {"chair/sentence": 1 / 3, "chair/instance": 1 / 4, "chair/recall": 2 / 4, "chair/mentions": 4 / 3}
    )
    assert make_chair_items(questions, CAPTIONS, truths=TRUTHS, find=find)[0].wrong == ()


def test_groups_are_pooled_but_for_pope() -> None:
    def item(number: int, group: str, top: float) -> Item:
        values = {"accuracy": (top, 1.0)}
        return Item(id=str(number), image="", question="", response="", label="", correct=None, group=group, values=values)

    items = [item(0, "a", 1.0), item(1, "b", 0.0), item(2, "b", 0.0), item(3, "b", 0.0)]
    assert compute_metrics("amber", items) == {"amber/a/accuracy": 1.0, "amber/b/accuracy": 0.0, "amber/accuracy": 0.25}
    assert compute_metrics("pope", items)["pope/accuracy"] == 0.5


def test_written_and_read_again(tmp_path: Path) -> None:
    questions = [Question(name, f"{name}.jpg", "Describe \u2028 é 🙂.") for name in CAPTIONS]
    items = make_chair_items(questions, CAPTIONS, truths=TRUTHS, find=find, locate=locate)
    path = items_path(tmp_path, "chair")
    write_items(path, items)
    assert path.name == "chair_items.jsonl"
    assert read_items(path) == items
    assert [p.name for p in tmp_path.iterdir()] == ["chair_items.jsonl"]
    row = json.loads(path.read_text().splitlines()[0])
    assert row.keys() == {"id", "image", "question", "response", "label", "correct", "group", "values", "wrong"}


@pytest.mark.parametrize("change", [{"values": {"f1": 1}}, {"values": None}, {"extra": 1}, {"values": {"f1": [1, "x"]}}])
def test_rows_of_another_shape(tmp_path: Path, change: dict[str, Any]) -> None:
    row = {"id": "1", "image": "", "question": "", "response": "", "label": "", "correct": True, "group": "", "values": {}}
    path = tmp_path / "x_items.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(ValueError, match="x_items.jsonl, row 2 is no scored answer"):
        read_items(path)


@pytest.mark.parametrize("which", ["all", "image"])
def test_hallusionbench_items_add_up_to_its_score(shared_data: Path, which: Any) -> None:
    """On the real questions, with and without a judge; a figure has one image, so that images can be resampled."""
    benchmark = load_hallusionbench(shared_data / "benchmarks" / "hallusionbench", which=which)
    images: dict[str | None, set[str | None]] = {}
    for question in benchmark.items:
        images.setdefault(question.figure, set()).add(question.image)
    assert all(len(those) == 1 for figure, those in images.items() if figure is not None)
    rng = Random(0)
    answers = {question.id: rng.choice(["Yes", "No", "Who knows?"]) for question in benchmark.items}
    replies = {question.id: rng.choice(["Correct.", "Incorrect.", "Unclear."]) for question in benchmark.items}
    for mode, judgements in (("official", None), ("strict", None), ("official", replies)):
        expected = benchmark.score(answers, mode=mode, judgements=judgements)  # type: ignore[arg-type]
        items = make_items(benchmark, answers, mode=mode, judgements=judgements)  # type: ignore[arg-type]
        got = compute_metrics("hallusionbench", items)
        assert got.keys() == {"hallusionbench/aacc", "hallusionbench/facc"}
        for key, value in got.items():
            assert value == pytest.approx(expected[key], abs=5.1e-5), (mode, key)
        right = sum(item.correct is True for item in items)
        assert right / len(items) * 100 == pytest.approx(expected["hallusionbench/aacc"], abs=5.1e-5)


def test_a_hallusionbench_figure_counts_once() -> None:
    """Two questions on a figure, one wrong; one without a figure, unclear and so right."""

    def ask(number: int, figure: str | None) -> HallusionQuestion:
        image = None if figure is None else f"{figure}.png"
        return HallusionQuestion(str(number), "pair", figure, False, image, "?", "It is.", True)

    questions = [ask(0, "f"), ask(1, "f"), ask(2, None), ask(3, "g")]
    right = {"0": True, "1": False, "2": True, "3": True}
    items = make_hallusion_items(questions, dict.fromkeys(right, "Yes"), right=right)
    assert [item.values.get("facc") for item in items] == [(0.0, 1.0), None, None, (100.0, 1.0)]
    assert compute_metrics("hallusionbench", items) == {"hallusionbench/aacc": 75.0, "hallusionbench/facc": 50.0}
    assert [item.correct for item in items] == list(right.values())

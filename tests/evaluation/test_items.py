"""Scored answers: what each adds, what is right, and that every metric of every benchmark is a formula over their sums."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mmalign.errors import UserError
from mmalign.evaluation.answers import Question
from mmalign.evaluation.benchmark import compute_metrics
from mmalign.evaluation.chair import Chair, find_in_closed_list
from mmalign.evaluation.hallusionbench import HallusionBench, HallusionQuestion, load_hallusionbench
from mmalign.evaluation.items import Item, add_up, items_path, read_items, write_items
from mmalign.evaluation.metrics import combine, count, mean, ratio, total, within
from mmalign.evaluation.mme import Mme, MmeQuestion
from mmalign.evaluation.mmhal import Mmhal, MmhalQuestion
from mmalign.evaluation.pope import Pope, PopeQuestion

CAPTIONS = {"a": "a dog and a dog and a cat", "b": "a car", "c": ""}
TRUTHS = {"a": frozenset({"dog"}), "b": frozenset({"car", "cat"}), "c": frozenset({"dog"})}
WORDS = {"dog": "dog", "cat": "cat", "car": "car"}


def build_pope(split: str, labels: str) -> list[PopeQuestion]:
    return [PopeQuestion(f"{split}/{i}", split, f"{i // 2}.png", f"Is there {i}?", label == "y") for i, label in enumerate(labels)]


def build_chair(how: str = "words") -> Chair:
    asked = [Question(name, f"{name}.jpg", "Describe \u2028 é 🙂.") for name in CAPTIONS]
    return Chair([], TRUTHS, asked, WORDS, lambda caption: find_in_closed_list(caption, words=WORDS), how)


def item(number: int, group: str, **values: float) -> Item:
    return Item(id=str(number), image="", question="", response="", label="", correct=None, group=group, values=values)


def test_pope_by_hand() -> None:
    questions = build_pope("random", "yyynn") + build_pope("popular", "yn")
    replies = ["Yes", "No", "hm", "Yes", "No", "Yes", "No"]
    answers = {question.id: reply for question, reply in zip(questions, replies, strict=True)}
    pope = Pope([], questions)
    items = pope.items(answers, mode="strict")
    assert [item.correct for item in items] == [True, False, False, False, True, True, True]
    assert [(item.label, item.group, item.image) for item in items[3:6]] == [
        ("no", "random", "1.png"), ("no", "random", "2.png"), ("yes", "popular", "0.png")
    ]  # fmt: skip
    got = compute_metrics(Pope, items)
    # Random: TP 1, FP 1, three are yes: P 1/2, R 1/3, F1 2/5. Popular is all right.
    expected = {"accuracy": 2 / 5, "precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5, "yes_ratio": 2 / 5}
    for name, value in expected.items():
        assert got[f"pope/random/{name}"] == pytest.approx(value)
        assert got[f"pope/{name}"] == pytest.approx((value + (0.5 if name == "yes_ratio" else 1.0)) / 2)
    assert (got["pope/unknown"], got["pope/popular/unknown"]) == (1, 0)
    # The official parser takes "hm" for a yes.
    assert compute_metrics(Pope, pope.items(answers, mode="official"))["pope/random/accuracy"] == pytest.approx(3 / 5)
    assert len(pope.items({"random/0": "Yes"}, mode="strict")) == 1


def test_constant_answers_are_scored_by_the_same_formulas() -> None:
    pope = Pope([], build_pope("random", "yyynn"))
    answers = dict.fromkeys(pope.required(), "No")
    metrics, baselines = compute_metrics(Pope, pope.items(answers, mode="official")), pope.baselines(answers, mode="official")
    parts = [f"{part}{key}" for part in ("random/", "merged/", "") for key in ("accuracy", "f1")]
    assert baselines.keys() == {f"pope/{name}/{key}" for name in ("always_yes", "always_no") for key in parts}
    assert baselines["pope/always_no/random/accuracy"] == metrics["pope/random/accuracy"] == 2 / 5
    assert baselines["pope/always_yes/f1"] == pytest.approx(2 * 0.6 / 1.6)
    assert build_chair().baselines(CAPTIONS, mode="official") == {}


def test_chair_by_hand() -> None:
    items = build_chair().items(CAPTIONS, mode="official")
    # a: two dogs right, a cat wrong; b: right; c: says nothing.
    assert [item.correct for item in items] == [False, True, True]
    assert items[0].wrong == ((22, 25),)
    assert CAPTIONS["a"][22:25] == "cat"
    assert [item.label for item in items] == ["dog", "car, cat", "dog"]
    expected = {"chair/sentence": 1 / 3, "chair/instance": 1 / 4, "chair/recall": 2 / 4, "chair/mentions": 4 / 3}
    assert compute_metrics(Chair, items) == pytest.approx(expected)
    assert build_chair("original").items(CAPTIONS, mode="official")[0].wrong == items[0].wrong


def test_an_image_of_mme_counts_once() -> None:
    records = [MmeQuestion(f"{pair}/{n}", pair, "count", pair, "?", n == 1) for pair in ("a", "b", "c") for n in (1, 2)]
    items = Mme([], records).items({"a/1": "Yes", "a/2": "No", "b/1": "No", "b/2": "No", "c/1": "hm"}, mode="official")
    assert [item.values.get("points") for item in items] == [200, None, 50, None, None]
    assert [item.correct for item in items] == [True, True, False, True, False]
    assert compute_metrics(Mme, items) == {
        "mme/count": 125.0, "mme/count/accuracy": 75.0, "mme/count/accuracy_plus": 50.0, "mme/total": 125.0, "mme/unknown": 1.0
    }  # fmt: skip


def test_ratings_that_say_hallucination_are_wrong_answers() -> None:
    records = [MmhalQuestion(str(i), "other", f"{i}.jpg", "Dog", "What is it?", "A dog.") for i in range(3)]
    judgements = {"0": "Rating: 2", "1": "Rating: 3", "2": "None."}
    items = Mmhal([], records).items(dict.fromkeys(judgements, "x"), mode="strict", judgements=judgements)
    assert [(item.correct, item.label, item.group) for item in items] == [
        (False, "A dog.", "other"), (True, "A dog.", "other"), (None, "A dog.", "other")
    ]  # fmt: skip
    got = compute_metrics(Mmhal, items)
    assert (got["mmhal/score"], got["mmhal/other/score"], got["mmhal/unreadable"]) == (2.5, 2.5, 1.0)


def test_formulas() -> None:
    sums = add_up([item(0, "a", top=1, bottom=1), item(1, "b", top=0, bottom=2), item(2, "b", top=1, bottom=1), item(3, "c", other=5)])
    share = ratio("top", "bottom")

    def value(formula: Any) -> float | None:
        found = formula(sums)
        return None if found is None else float(found[0])

    by_group = [within([group], share) for group in ("a", "b", "c")]
    assert value(share) == 0.5
    assert [value(one) for one in by_group] == [1.0, pytest.approx(1 / 3), None]
    assert value(mean(by_group)) == pytest.approx(2 / 3)
    assert value(total(by_group)) == pytest.approx(4 / 3)
    assert (value(mean(by_group[2:])), value(total([])), value(count("none"))) == (None, None, None)
    assert value(combine(lambda a, b: a - b, *by_group[:2], digits=2)) == 0.67
    assert value(combine(lambda a, c: a - c, by_group[0], by_group[2])) is None
    assert value(ratio("top", "bottom", scale=100, start=0.001, digits=1)) == 50.0
    # Halves as Python rounds them: 0.125 is one, 2.675 is below.
    assert (value(combine(lambda a: a * 0.125, by_group[0], digits=2)), value(combine(lambda a: a * 2.675, by_group[0], digits=2))) == (
        0.12,
        2.67,
    )
    assert value(ratio("top", "nothing")) is None


def test_rows_of_sums_are_sorted() -> None:
    items = [item(0, "", a=1), item(1, "", a=2, b=1), item(2, "g", a=4)]
    sums = add_up(items, lambda one: ("z" if one.id == "0" else "a", ""))
    assert sums.get("a").tolist() == [6.0, 1.0]  # type: ignore[union-attr]
    assert sums.within(["g"]).get("a").tolist() == [4.0, 0.0]  # type: ignore[union-attr]
    assert sums.get("b").tolist() == [1.0, 0.0]  # type: ignore[union-attr]


def test_written_and_read_again(tmp_path: Path) -> None:
    items = build_chair().items(CAPTIONS, mode="official")
    path = items_path(tmp_path, "chair")
    write_items(path, items)
    assert path.name == "chair_items.jsonl"
    assert read_items(path) == items
    assert [p.name for p in tmp_path.iterdir()] == ["chair_items.jsonl"]
    row = json.loads(path.read_text().splitlines()[0])
    assert row.keys() == {"id", "image", "question", "response", "label", "correct", "group", "values", "cluster", "wrong"}


def test_rows_of_another_version(tmp_path: Path) -> None:
    row: dict[str, Any] = {"id": "1", "image": "", "question": "", "response": "", "label": "", "correct": True, "group": "", "values": {}}
    path = tmp_path / "x_items.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"extra": 1}) + "\n")
    with pytest.raises(UserError, match="x_items.jsonl, row 2 is no scored answer .*extra"):
        read_items(path)
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "values": {}} | {"id": "2"}).replace('"values": {}', '"other": 1') + "\n")
    with pytest.raises(ValueError, match="x_items.jsonl, row 2 is no scored answer"):
        read_items(path)


@pytest.mark.parametrize("which", ["all", "image"])
def test_hallusionbench_figures_and_pairs_on_the_real_questions(shared_data: Path, which: Any) -> None:
    """A figure has one image, and a pair stands in one set, so that images and sets can be resampled."""
    benchmark = load_hallusionbench(shared_data / "benchmarks" / "hallusionbench", which=which)
    images: dict[str | None, set[str | None]] = {}
    for record in benchmark.records:
        images.setdefault(record.figure, set()).add(record.image)
    assert all(len(those) == 1 for figure, those in images.items() if figure is not None)
    rng = Random(0)
    answers = {record.id: rng.choice(["Yes", "No", "Who knows?"]) for record in benchmark.records}
    items = benchmark.items(answers, mode="strict")
    clusters: dict[str, set[str]] = {}
    for record, one in zip(benchmark.records, items, strict=True):
        clusters.setdefault(record.pair, set()).add(one.cluster)
    assert all(len(those) == 1 for those in clusters.values())
    got = compute_metrics(HallusionBench, items)
    assert got["hallusionbench/aacc"] == round(100 * sum(one.correct is True for one in items) / len(items), 4)
    pairs = [{one.correct for record, one in zip(benchmark.records, items, strict=True) if record.pair == pair} for pair in clusters]
    assert got["hallusionbench/qacc"] == round(100 * sum(those == {True} for those in pairs) / len(pairs), 4)


def test_a_hallusionbench_figure_counts_once() -> None:
    """Two questions on a figure, one wrong; one without a figure, unclear and so right."""

    def ask(number: int, figure: str | None) -> HallusionQuestion:
        image = None if figure is None else f"{figure}.png"
        return HallusionQuestion(str(number), "set_pair", figure, number == 3, image, "?", "It is.", True)

    bench = HallusionBench([], [ask(0, "f"), ask(1, "f"), ask(2, None), ask(3, "g")], frozenset("0123"), "all")
    items = bench.items({"0": "Yes", "1": "No", "2": "hm", "3": "Yes"}, mode="strict")
    assert [(item.values.get("facc"), item.values.get("facc_right")) for item in items] == [(1, 0), (None, None), (None, None), (1, 1)]
    assert [item.correct for item in items] == [True, False, True, True]
    assert compute_metrics(HallusionBench, items) == {
        f"hallusionbench/{name}": value
        for name, value in {"aacc": 75.0, "qacc": 0.0, "facc": 50.0, "easy": 0.0, "hard": 100.0, "unclear": 1.0}.items()
    }
    assert {item.cluster for item in items} == {"set"}

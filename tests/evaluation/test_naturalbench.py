"""NaturalBench: samples by hand, chance by enumeration, both extractors, the hub's Parquet, the published split."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from mmalign.evaluation.answers import match_answers, read_answers
from mmalign.evaluation.intervals import compute_intervals
from mmalign.evaluation.naturalbench import NaturalBench, load_naturalbench, parse_careful, parse_official
from tests.tiny_models import random_image

SHARES = ("accuracy", "q_accuracy", "i_accuracy", "g_accuracy")
ASK, PICK = "Please answer Yes or No.", "Please output the letter corresponding to the correct option."
CAPS = "What is worn?\nOption: A:Knit cap; B:Helmet;" + PICK
SPORTS = "Which sport?\nOption: A:Rowing; B:Golf;" + PICK
ROWS = [
    [f"Is it up?{ASK}", "1.jpg", "Yes", "yes_no"],
    [f"Is it up?{ASK}", "2.jpg", "No", "yes_no"],
    [f"Is it down?{ASK}", "1.jpg", "No", "yes_no"],
    [f"Is it down?{ASK}", "2.jpg", "Yes", "yes_no"],
    [CAPS, "3.jpg", "A", "mcq"],
    [CAPS, "4.jpg", "B", "mcq"],
    [SPORTS, "3.jpg", "B", "mcq"],
    [SPORTS, "4.jpg", "A", "mcq"],
]


@pytest.fixture
def bench(tmp_path: Path) -> NaturalBench:
    (tmp_path / "test_set.json").write_text(json.dumps(ROWS))
    return load_naturalbench(tmp_path)


def test_samples_by_hand(bench: NaturalBench) -> None:
    assert [(one.id, one.sample, one.image, one.answer) for one in bench.records][3:6] == [
        ("3", "0", "2.jpg", 0), ("4", "1", "3.jpg", 0), ("5", "1", "4.jpg", 1)
    ]  # fmt: skip
    assert bench.records[4].options == ("Knit cap", "Helmet")
    # Sample 0: all but the last right: question 0, image 0. Sample 1: the letters of question 0, then neither, then right.
    answers = dict(zip(bench.required(), ["Yes", "no", "No.", "No", "A", "(B)", "hm", "A: Rowing"], strict=True))
    got = bench.score(answers, mode="official")
    assert [got[f"naturalbench/{name}"] for name in SHARES] == [6 / 8, 2 / 4, 2 / 4, 0]
    assert [got[f"naturalbench/yes_no/{name}"] for name in SHARES] == [3 / 4, 1 / 2, 1 / 2, 0]
    assert got["naturalbench/unknown"] == 1
    assert [got[f"naturalbench/always_yes/{name}"] for name in SHARES] == [0.5, 0, 0, 0]
    right = {one.id: [["Yes", "No"], ["A", "B"]][one.kind != "yes_no"][one.answer] for one in bench.records}
    assert [bench.score(right, mode=mode)[f"naturalbench/{name}"] for mode in ("official", "strict") for name in SHARES] == [1.0] * 8  # type: ignore[arg-type]
    # A sample that is answered in part has no groups.
    part = bench.score({i: right[i] for i in ("0", "1", "2", "4", "5", "6", "7")}, mode="official")
    assert (part["naturalbench/accuracy"], part["naturalbench/g_accuracy"]) == (1.0, 1.0)
    assert "naturalbench/yes_no/g_accuracy" not in part


def test_chance_by_enumeration(bench: NaturalBench) -> None:
    """Over all sixteen ways to answer a sample: the paper's row of chance, 50, 25, 25 and 6.25."""
    scores = [
        bench.score({str(i): word for i, word in enumerate(words)}, mode="official") for words in itertools.product(("Yes", "No"), repeat=4)
    ]
    assert [sum(score[f"naturalbench/{name}"] for score in scores) / 16 for name in SHARES] == [0.5, 0.25, 0.25, 0.0625]


@pytest.mark.parametrize(
    ("place", "answer", "official", "strict"),
    [
        (0, "Yes", 0, 0),
        (0, "no, yes", 1, 1),
        (0, "nothing", None, None),
        (4, "B", 1, 1),
        (4, "b.", 1, 1),
        # The article is the letter A to the official extractor.
        (4, "It is a helmet", 0, 1),
        (4, "The answer is B, not A", 1, 1),
        (4, "helmet", None, 1),
        (4, "Knit cap or helmet", None, None),
        (4, "", None, None),
    ],
)
def test_both_extractors(bench: NaturalBench, place: int, answer: str, official: int | None, strict: int | None) -> None:
    question = bench.records[place]
    assert (parse_official(answer, question.kind), parse_careful(question, answer)) == (official, strict)


def test_samples_are_resampled_as_one(bench: NaturalBench) -> None:
    always = bench.items({one.id: "Yes" if one.kind == "yes_no" else "A" for one in bench.records}, mode="official")
    intervals = compute_intervals(NaturalBench, always, resamples=200)
    assert (intervals["naturalbench/accuracy"].low, intervals["naturalbench/accuracy"].high) == (0.5, 0.5)
    assert [item.cluster for item in always] == ["0"] * 4 + ["1"] * 4


def test_outputs_in_order_are_read(bench: NaturalBench, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text(json.dumps(["Yes"] * 8))
    read = read_answers(tmp_path / "out.json", bench.form, order=bench.required(), texts=bench.texts(), parts=bench.parts())
    assert match_answers(read, required=bench.required()) == dict.fromkeys(bench.required(), "Yes")


def test_the_hubs_parquet_holds_its_images(tmp_path: Path) -> None:
    def picture(seed: int) -> dict[str, Any]:
        file = io.BytesIO()
        random_image(seed).save(file, format="PNG")
        return {"bytes": file.getvalue(), "path": "image.png"}

    questions = {"Question_0": "Is it up?", "Question_1": "Is it down?", "Question Type": "yes_no"}
    labels = {"Image_0_Question_0": "Yes", "Image_1_Question_0": "No", "Image_0_Question_1": "No", "Image_1_Question_1": "Yes"}
    rows = [{**questions, **labels, "Image_0": picture(2 * i), "Image_1": picture(2 * i + 1)} for i in range(2)]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / "train-0.parquet"))
    bench = load_naturalbench(tmp_path)
    assert [(one.text, one.image) for one in bench.records[2:5]] == [
        (f"Is it down?{ASK}", "0_0.jpg"), (f"Is it down?{ASK}", "0_1.jpg"), (f"Is it up?{ASK}", "1_0.jpg")
    ]  # fmt: skip
    assert bench.holds_images
    assert bench.write_images(tmp_path / "images")
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == {
        f"{i}_{k}.jpg": rows[i][f"Image_{k}"]["bytes"] for i in range(2) for k in range(2)
    }


def test_the_published_split(shared_data: Path) -> None:
    bench = load_naturalbench(shared_data / "benchmarks" / "naturalbench")
    assert (len(bench.records), len({one.image for one in bench.records})) == (3800, 1898)
    letters = [one for one in bench.records if one.kind == "multiple_choice"]
    assert len(letters) == 428
    assert not any(one.options == ("A", "B") for one in letters)
    labels = {one.id: row[2] for one, row in zip(bench.records, json.loads(bench.files[0].read_text()), strict=True)}
    for mode in ("official", "strict"):
        got = bench.score(labels, mode=mode)  # type: ignore[arg-type]
        assert [got[f"naturalbench/{name}"] for name in SHARES] == [1.0] * 4
        assert [got[f"naturalbench/always_no/{name}"] for name in SHARES] == [0.5, 0, 0, 0]


def test_what_is_no_sample(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no questions of NaturalBench at .*: expected the hub's Parquet, or test_set.json"):
        load_naturalbench(tmp_path)
    file = tmp_path / "test_set.json"
    for rows, message in (
        (ROWS[:3], "holds 3 rows; expected four per sample"),
        ([*ROWS[:3], ["?", "2.jpg"]], r"record 4 is .*; expected four texts"),
        ([*ROWS[:2], ROWS[3], ROWS[2]], "records 1 to 4 are no sample"),
        ([[*row[:3], "open"] for row in ROWS[:4]], "the kind of question is 'open'; expected yes_no or multiple_choice"),
    ):
        file.write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=message):
            load_naturalbench(tmp_path)

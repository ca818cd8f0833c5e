"""HaloQuest: replies of a judge, accuracy by hand, the released questions."""

from pathlib import Path

import pytest

from mmalign.evaluation.haloquest import HaloQuest, load_haloquest, parse_judgement

HEADER = ",image_name,image type,hallucination type,question,groundtruth responses,split\n"
ROWS = (
    "0,a.png,generated,false premises,What colour is the hat?,No hat; There is no hat;,eval\n"
    '1,b.png,real,visual challenge,How many cups?,"Two, side by side",eval\n'
    "2,b.png,real,false premises,What does the sign say?,There is no sign,eval\n"
)


@pytest.fixture
def bench(tmp_path: Path) -> HaloQuest:
    (tmp_path / "haloquest-eval.csv").write_text(HEADER + ROWS)
    return load_haloquest(tmp_path)


@pytest.mark.parametrize(
    ("reply", "official", "strict"),
    [
        ("correct", True, True),
        (" Incorrect\n", False, False),
        ("PredictionEvaluation(\n  is_prediction_correct=True\n)", True, True),
        ('{"is_prediction_correct": false}', False, False),
        ("The verdict: not correct.", None, False),
        ("The hat is made up: incorrect.", None, False),
        ("unclear", None, None),
        ("", None, None),
    ],
)
def test_replies(reply: str, official: bool | None, strict: bool | None) -> None:
    assert (parse_judgement(reply, mode="official"), parse_judgement(reply, mode="strict")) == (official, strict)


def test_accuracy_by_hand(bench: HaloQuest) -> None:
    answers = {"0": "It is blue.", "1": "Two.", "2": "There is none."}
    prompts = bench.judge_prompts(answers)
    assert "Question: What colour is the hat?\nAccepted responses: No hat; There is no hat\nResponse: It is blue.\n" in prompts["0"]
    got = bench.score(answers, mode="strict", judgements={"0": "incorrect", "1": "correct", "2": "It is correct."})
    assert got == {
        "haloquest/accuracy": pytest.approx(2 / 3),
        "haloquest/unreadable": 0,
        "haloquest/false_premises/accuracy": 0.5,
        "haloquest/visual_challenge/accuracy": 1.0,
        "haloquest/generated/accuracy": 0.0,
        "haloquest/real/accuracy": 1.0,
    }
    official = bench.score(answers, mode="official", judgements={"0": "incorrect", "1": "correct", "2": "It is correct."})
    assert (official["haloquest/accuracy"], official["haloquest/unreadable"]) == (0.5, 1)
    items = bench.items(answers, mode="official", judgements={"0": "incorrect", "1": "correct", "2": "?"})
    assert [(item.correct, item.group) for item in items] == [
        (False, "false_premises/generated"), (True, "visual_challenge/real"), (None, "false_premises/real")
    ]  # fmt: skip


def test_no_judge_no_score(bench: HaloQuest) -> None:
    with pytest.raises(ValueError, match="needs a judge: --judge-url"):
        bench.score({"0": "x"}, mode="official")
    with pytest.raises(ValueError, match="none of 1 judgements says correct or incorrect"):
        bench.score({"0": "x"}, mode="official", judgements={"0": "?"})


def test_the_released_questions(shared_data: Path) -> None:
    bench = load_haloquest(shared_data / "benchmarks" / "haloquest")
    kinds = {kind: sum(one.kind == kind for one in bench.records) for kind in dict.fromkeys(one.kind for one in bench.records)}
    assert kinds == {"insufficient_context": 121, "false_premises": 304, "visual_challenge": 183}
    assert (len({one.image for one in bench.records}), bench.records[-1].id) == (375, "607")
    assert not bench.records[-1].reference.endswith(";")


def test_what_is_no_haloquest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="questions are missing at .*: expected one file, haloquest-eval.csv"):
        load_haloquest(tmp_path)
    (tmp_path / "haloquest-eval.csv").write_text(HEADER + "0,a.png,real,,What?,None,eval\n")
    with pytest.raises(ValueError, match="row 1: one of image_name, image type, hallucination type, .* is empty"):
        load_haloquest(tmp_path)
    (tmp_path / "haloquest-eval.csv").write_text(HEADER + ROWS[:-20])
    with pytest.raises(ValueError, match="row 3 has fewer values than the first line has names: image_name, image type"):
        load_haloquest(tmp_path)

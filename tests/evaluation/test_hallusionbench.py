"""HallusionBench: groups by hand, rule and judge, both forms on the real file."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.evaluation.answers import Answer, match_answers, read_answers
from mmalign.evaluation.hallusionbench import HallusionBench, code_by_rule, load_hallusionbench, parse_judgement
from mmalign.evaluation.judging import read_judgements


def record(category: str, figure: int, question: int, *, answer: int, visual_input: int) -> dict[str, Any]:
    return {
        "category": category,
        "subcategory": "chart",
        "visual_input": str(visual_input),
        "set_id": "0",
        "figure_id": str(figure),
        "question_id": str(question),
        "question": f"Is it {question}?",
        "gt_answer_details": "It is.",
        "gt_answer": str(answer),
        "filename": None if visual_input == 0 else f"./{category}/chart/0_{figure}.png",
    }


RECORDS = [
    record("VS", 0, 0, answer=1, visual_input=0),
    record("VS", 1, 0, answer=1, visual_input=1),
    record("VS", 1, 1, answer=0, visual_input=1),
    record("VS", 2, 0, answer=0, visual_input=2),
    record("VD", 0, 0, answer=0, visual_input=1),
]
IDS = ["VS_chart_0_0_0", "VS_chart_0_1_0", "VS_chart_0_1_1", "VS_chart_0_2_0", "VD_chart_0_0_0"]


@pytest.fixture
def bench(tmp_path: Path) -> HallusionBench:
    (tmp_path / "HallusionBench.json").write_text(json.dumps(RECORDS))
    return load_hallusionbench(tmp_path)


def test_groups_by_hand(bench: HallusionBench) -> None:
    assert bench.required() == IDS
    got = bench.score(dict(zip(IDS, ["no", "Yes", "No", "No.", "Yes"], strict=True)), mode="official")
    # Right: all but the first and the last. Pairs: VS 0 (3 questions) fails, VS 1 holds, VD 0 fails.
    # Figures: VS 1 and VS 2 hold, VD 0 fails, VS 0 is none.
    assert (got["hallusionbench/aacc"], got["hallusionbench/qacc"], got["hallusionbench/facc"]) == (60.0, 33.3333, 66.6667)
    assert (got["hallusionbench/always_no/aacc"], got["hallusionbench/always_yes/facc"]) == (60.0, 0.0)


def test_without_a_figure_it_is_right_not_to_know(bench: HallusionBench) -> None:
    judgements = dict(zip(IDS, ["unclear", "Correct", "unclear", "correct.", "INCORRECT, not correct"], strict=True))
    got = bench.score(dict.fromkeys(IDS, "x"), mode="official", judgements=judgements)
    assert (got["hallusionbench/aacc"], got["hallusionbench/unclear"]) == (60.0, 2)
    assert (got["hallusionbench/qacc"], got["hallusionbench/facc"]) == (33.3333, 33.3333)


@pytest.mark.parametrize(("reply", "code"), [("correct", 1), ("This is Incorrect.", 0), ("unclear", 2), ("", 2), ("not correct", 1)])
def test_judgements(reply: str, code: int) -> None:
    assert parse_judgement(reply, mode="official") == code


@pytest.mark.parametrize(
    ("answer", "official", "strict"), [("Yes", 1, 1), ("yesterday", 1, 2), ("", 0, 2), ("No", 0, 0), ("No, yes means", 1, 0)]
)
def test_rules(answer: str, official: int, strict: int) -> None:
    assert (code_by_rule(answer, is_yes=True, mode="official"), code_by_rule(answer, is_yes=True, mode="strict")) == (official, strict)


def test_real_file_in_both_forms(shared_data: Path) -> None:
    source = shared_data / "benchmarks" / "hallusionbench"
    whole, with_image = load_hallusionbench(source), load_hallusionbench(source / "HallusionBench.json", which="image")
    assert (len(whole.records), len(with_image.records)) == (1129, 951)
    got = [bench.score(dict.fromkeys(bench.required(), "No"), mode="official") for bench in (whole, with_image)]
    assert (round(got[0]["hallusionbench/aacc"], 1), round(got[0]["hallusionbench/qacc"], 1)) == (57.1, 19.3)
    # 42 of 346 figures. With the 57 groups of questions that have no figure it would be 46 of 403, 11.4.
    assert got[0]["hallusionbench/facc"] == got[1]["hallusionbench/facc"] == 12.1387
    perfect = {item.id: "Yes" if item.is_yes else "No" for item in whole.records}
    scores = whole.score(perfect, mode="official")
    assert [scores[f"hallusionbench/{name}"] for name in ("aacc", "qacc", "facc")] == [100.0] * 3
    assert sum(question.image is None for question in whole.questions()) == 178


def test_one_file_of_answers_serves_both_forms(shared_data: Path) -> None:
    source = shared_data / "benchmarks" / "hallusionbench"
    whole, with_image = load_hallusionbench(source), load_hallusionbench(source, which="image")
    answers = [Answer(identifier, "No") for identifier in whole.required()]
    chosen = match_answers(answers, required=with_image.required(), known=with_image.known())
    assert list(chosen) == with_image.required()
    with pytest.raises(ValueError, match="178 questions have no answer"):
        match_answers(answers[178:], required=whole.required(), known=whole.known())


def test_answers_and_codes_of_the_original(bench: HallusionBench, tmp_path: Path) -> None:
    rows = [
        row | {"model_prediction": "Yes", "gpt4v_output_gpt_check": str(code)} for row, code in zip(RECORDS, (2, 1, 0, 1, 1), strict=True)
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert match_answers(read_answers(tmp_path / "a.json", bench.form), required=IDS) == dict.fromkeys(IDS, "Yes")
    codes = read_judgements(tmp_path / "a.json", bench.judgement_form, asked=IDS, order=IDS).texts
    assert list(codes.values()) == ["unclear", "correct", "incorrect", "correct", "correct"]


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="HallusionBench's questions are missing"):
        load_hallusionbench(tmp_path)
    path = tmp_path / "HallusionBench.json"
    path.write_text(json.dumps([RECORDS[0], RECORDS[0]]))
    with pytest.raises(ValueError, match="2 records of 1 questions"):
        load_hallusionbench(path)
    path.write_text(json.dumps([{**RECORDS[0], "gt_answer": "2"}]))
    with pytest.raises(ValueError, match="record 1: gt_answer is '2'; expected 0 or 1"):
        load_hallusionbench(path)


@pytest.mark.parametrize("own", [True, False])
def test_answers_to_all_questions_serve_the_951(shared_data: Path, tmp_path: Path, own: bool) -> None:
    """The released file with model_prediction holds all 1,129; those without an image are passed over, and a foreign id is not."""
    source = shared_data / "benchmarks" / "hallusionbench" / "HallusionBench.json"
    rows = json.loads(source.read_text())
    everything, images = load_hallusionbench(source), load_hallusionbench(source, which="image")
    named = [{"id": item.id, "response": "No"} for item in everything.records]
    (tmp_path / "answers.json").write_text(json.dumps([row | {"model_prediction": "No"} for row in rows] if own else named))
    answers = match_answers(read_answers(tmp_path / "answers.json", images.form), required=images.required(), known=images.known())
    assert len(answers) == 951
    (tmp_path / "answers.json").write_text(json.dumps([*named, {"id": "VS_chart_99_0_0", "response": "No"}]))
    with pytest.raises(ValueError, match="1 answers belong to no question: VS_chart_99_0_0"):
        match_answers(read_answers(tmp_path / "answers.json", images.form), required=images.required(), known=images.known())

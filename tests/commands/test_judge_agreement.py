"""``mmalign judge-agreement``: published judgements beside ours, and a cache replayed as the judge that filled it."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.cli import main
from tests.evaluation.judges.chat_server import run_chat_server

KINDS = ("attribute", "adversarial", "comparison", "counting")
RATINGS = (5, 0, 3, 2)


@pytest.fixture
def mmhal(tmp_path: Path) -> Path:
    rows = [
        {"question_type": kind, "image_id": kind, "image_src": "", "image_content": ["Dog"], "question": f"{kind}?", "gt_answer": "A dog."}
        for kind in KINDS
    ]
    (tmp_path / "mmhal-bench_answer_template.json").write_text(json.dumps(rows))
    merged = [{**row, "model_answer": "A dog.", "gpt4_review": f"Fine.\nRating: {r}"} for row, r in zip(rows, RATINGS, strict=True)]
    (tmp_path / "merged.json").write_text(json.dumps(merged))
    return tmp_path


def compare(capsys: pytest.CaptureFixture[str], name: str, folder: Path, answers: str, *words: object) -> dict[str, Any]:
    paths = ["--data", folder, "--answers", folder / answers, "--out", folder / "out"]
    assert main(["judge-agreement", name, *map(str, paths), *map(str, words), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result == json.loads((folder / "out" / f"{name}_agreement.json").read_text())
    return result


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_published_ratings_beside_ours(capsys: pytest.CaptureFixture[str], mmhal: Path) -> None:
    """Ours: 5, 2, 4 and one without a rating. Two of three on the same side of 3; one of three alike."""
    said = dict(zip(KINDS, ("**Rating:** 5", "Rating: 2", "Rating: 4", "No idea."), strict=True))
    ours = write_lines(mmhal / "ours.jsonl", [{"id": i, "judgement": reply} for i, reply in said.items()])
    files = ["--judgements", mmhal / "merged.json", "--judgements", ours]
    got = compare(capsys, "mmhal", mmhal, "merged.json", *files, "--names", "gpt-4", "--names", "local")
    assert (got["judges"], got["num_answers"]) == (["gpt-4", "local"], 4)
    rating, hallucinating = got["agreements"]["rating"], got["agreements"]["hallucinating"]
    assert rating["unreadable"] == hallucinating["unreadable"] == [0, 1, 0]
    assert (rating["table"][5][5], rating["table"][0][2], rating["table"][3][4]) == (1, 1, 1)
    assert rating["metrics"]["accuracy"]["value"] == pytest.approx(1 / 3)
    # Squared distances 0, 4, 1; of any two of (5, 0, 3) and (5, 2, 4): 0 9 1 25 4 16 4 1 1.
    assert rating["metrics"]["weighted_kappa"]["value"] == pytest.approx(1 - (5 / 3) / (61 / 9))
    assert hallucinating["metrics"]["kappa"]["value"] == 1.0
    score = got["metrics"]["mmhal/score"]
    # Of the three answers that both could be read of.
    assert (score["first"], score["second"]) == (2.67, 3.67)
    rows = [json.loads(line) for line in (mmhal / "out" / "mmhal_disagreements.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["adversarial", "comparison", "counting"]
    assert rows[2]["judges"]["local"] == {"said": {"rating": None, "hallucinating": None}, "reply": "No idea."}


def test_a_table_for_the_terminal(capsys: pytest.CaptureFixture[str], mmhal: Path) -> None:
    path = str(mmhal / "merged.json")
    words = ["--data", str(mmhal), "--answers", path, "--judgements", path, "--judgements", path]
    assert main(["judge-agreement", "mmhal", *words]) == 0
    text = capsys.readouterr().out
    assert "hallucinating: 4 answers; can't be read: 0 of saved in merged.json, 0 of saved in merged.json, 0 of both" in text
    assert "kappa     1.000 [1.000, 1.000]" in text


def test_lists_of_objects(capsys: pytest.CaptureFixture[str], tmp_path: Path, nltk_words: None) -> None:
    """A description with an absent object, one without, one that names none, and one where the original's judge gave up."""
    (tmp_path / "synonyms_refine.txt").write_text("person, man\ndog, puppy\ncar\n")
    (tmp_path / "coco_objects.json").write_text(json.dumps({"1": ["person"], "2": ["car"], "3": ["car"], "4": ["dog"]}))
    write_lines(tmp_path / "obj_halbench_300.jsonl", [{"image_id": i, "question": "Describe."} for i in (1, 2, 3, 4)])
    answers = [{"image_id": i, "caption": "Something that can be seen here."} for i in (1, 2, 3, 4)]
    lists = (["man", "dog"], ["car"], [], "-1\n<no_response>")
    theirs = [{**row, "extract_objs": found} for row, found in zip(answers, lists, strict=True)]
    ours = [{"id": str(i + 1), "judgement": reply} for i, reply in enumerate(('["dog"]', '["car", "puppy"]', "[]", '["dog"]'))]
    write_lines(tmp_path / "answers.jsonl", answers)
    files = [write_lines(tmp_path / "theirs.jsonl", theirs), write_lines(tmp_path / "ours.jsonl", ours)]
    got = compare(capsys, "object-halbench", tmp_path, "answers.jsonl", "--judgements", files[0], "--judgements", files[1])
    description = got["agreements"]["description"]
    assert description["values"] == ["absent", "present", "none"]
    assert (description["table"], description["unreadable"]) == ([[1, 0, 0], [1, 0, 0], [0, 0, 1]], [1, 0, 0])
    # By chance 1/3 x 2/3 + 1/3 x 0 + 1/3 x 1/3 = 1/3.
    assert description["metrics"]["kappa"]["value"] == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    mention = got["metrics"]["object_halbench/mention"]
    assert (mention["first"], mention["second"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_metrics_that_join_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One question on two figures is right where both answers are: for one judge they are, for the other one of them is unclear."""
    names = {
        "category": "VD",
        "subcategory": "figure",
        "set_id": "0",
        "question_id": "0",
        "question": "Is it?",
        "gt_answer_details": "It is.",
    }
    rows = [{**names, "figure_id": f"{i}", "visual_input": "1", "filename": f"./{i}.png", "gt_answer": "1"} for i in (1, 2)]
    (tmp_path / "HallusionBench.json").write_text(json.dumps(rows))
    (tmp_path / "answers.json").write_text(json.dumps([{**row, "model_prediction": "Yes."} for row in rows]))
    (tmp_path / "codes.json").write_text(json.dumps([{**row, "gpt4v_output_gpt_check": "1"} for row in rows]))
    ours = [{"id": f"VD_figure_0_{i}_0", "judgement": reply} for i, reply in ((1, "It is correct."), (2, "Unclear."))]
    files = [tmp_path / "codes.json", write_lines(tmp_path / "ours.jsonl", ours)]
    got = compare(capsys, "hallusionbench", tmp_path, "answers.json", "--judgements", files[0], "--judgements", files[1])
    assert got["agreements"]["answer"]["table"] == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert [got["metrics"]["hallusionbench/qacc"][name] for name in ("first", "second")] == [100.0, 0.0]


def test_an_unreadable_reply_is_no_wrong_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """MMVP's script takes any reply but yes for wrong."""
    lines = [f"{i},Is it open or shut?,(a) open (b) shut,({label})" for i, label in ((1, "a"), (2, "b"))]
    (tmp_path / "Questions.csv").write_text("\n".join(["Index,Question,Options,Correct Answer", *lines]) + "\n")
    answers = write_lines(tmp_path / "answers.jsonl", [{"id": "1", "response": "Open"}, {"id": "2", "response": "Open"}])
    replies = (("yes", "no"), ("yes", "Maybe so."))
    files = [
        write_lines(tmp_path / f"{number}.jsonl", [{"id": "1", "judgement": a}, {"id": "2", "judgement": b}])
        for number, (a, b) in enumerate(replies)
    ]
    got = compare(capsys, "mmvp", tmp_path, answers.name, "--judgements", files[0], "--judgements", files[1])
    assert got["agreements"]["answer"]["unreadable"] == [0, 1, 0]
    assert got["agreements"]["answer"]["table"] == [[1, 0], [0, 0]]


def test_a_cache_is_replayed_as_its_judge(capsys: pytest.CaptureFixture[str], mmhal: Path) -> None:
    """The result is that of the judge that was asked, to the last field, though its server is gone."""
    pytest.importorskip("openai", reason="the judge extra is not installed")
    words = ["evaluate", "mmhal", "--data", str(mmhal), "--answers", str(mmhal / "merged.json"), "--json"]
    with run_chat_server() as server:
        server.answer = lambda prompt: "<think>Rating: 1?</think>Rating: 4" if "counting?" in prompt else "Rating: 0"
        asked = ["--judge-url", server.url, "--judge-model", "m", "--judge-key-env", "none", "--out", str(mmhal / "asked")]
        assert main([*words, *asked]) == 0
    first = json.loads(capsys.readouterr().out)
    cache = mmhal / "asked" / "mmhal_judge_cache.jsonl"
    assert main([*words, "--judgements", str(cache), "--judge-model", "m"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (first["judge"], first["mmhal/score"]) == ("m", 1.0)
    got = compare(capsys, "mmhal", mmhal, "merged.json", "--judgements", mmhal / "merged.json", "--judgements", cache)
    assert got["judges"] == ["saved in merged.json", "m"]
    assert got["agreements"]["hallucinating"]["table"] == [[0, 2], [1, 1]]


def test_what_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str], mmhal: Path) -> None:
    path = str(mmhal / "merged.json")
    words = ["judge-agreement", "mmhal", "--data", str(mmhal), "--answers", path, "--judgements", path]
    with pytest.raises(SystemExit):
        main(words)
    assert "judgements are 1 files; expected two" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--judgements", path, "--names", "a", "--names", "a"])
    assert "names are a, a; expected two, one for each file of judgements" in capsys.readouterr().err
    write_lines(mmhal / "pope_random.jsonl", [{"question_id": 1, "image": "1.jpg", "text": "Is it?", "label": "no"}])
    answers = write_lines(mmhal / "a.jsonl", [{"id": "random/1", "response": "No"}])
    words[1], words[3], words[5] = "pope", str(mmhal / "pope_random.jsonl"), str(answers)
    assert main([*words, "--judgements", path]) == 2
    assert "pope asks no judge; expected mmhal" in capsys.readouterr().err

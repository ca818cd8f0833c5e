"""Rounds whose samples come from an endpoint."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mmalign.data.datasets import load_rows
from schedules.iterate import main as iterate
from tests.data_tools.test_endpoint_sampling import COLOURS, write_questions
from tests.evaluation.judges.chat_server import fault, run_chat_server

TRAIN = "--learning-rate 1e-3 --batch-size 4 --max-steps 2 --logging-steps 1"


def test_a_teachers_answer_is_chosen(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """No sample is right; what repeats itself is rejected before what is only wrong."""
    source, *rest = write_questions(tmp_path)
    rows = [{**json.loads(line), "answer": "A red one.", "teacher": "a red one"} for line in Path(source).read_text().splitlines()]
    Path(source).write_text("\n".join(map(json.dumps, rows)))
    echo = "and so on again " * 6
    with run_chat_server() as server:
        server.answer_request = lambda request: (*COLOURS[1:], echo)[request["seed"] % 4]
        sample = f"--endpoint {server.url} --scorer answers --max-new-tokens 4 --gold teacher"
        words = [source, *rest[:2], "--model", str(tiny_llava_dir), "--out", str(tmp_path / "out"), "--rounds", "1", "--train", TRAIN]
        assert iterate([*words, "--sample", sample, "--repetition", "4", "--min-gap-student", "2"]) == 0
        assert iterate([*words, "--sample", sample, "--method", "listwise"]) == 2
    for row in load_rows(tmp_path / "out" / "round-1" / "pairs.parquet"):
        assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("a red one", echo.strip())
        assert (row["score_chosen"], row["score_rejected"]) == pytest.approx((1.0, -1e-6))


def test_each_round_asks_for_its_policy_by_name(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server has the first policy alone at first: the second round stops and says what to serve; then it runs."""
    source, *rest = write_questions(tmp_path)
    second = str(tmp_path / "out" / "round-1" / "model")
    with run_chat_server() as server:
        server.answer_request = lambda request: COLOURS[request["seed"] % 4]
        sample = f"--endpoint {server.url} --scorer answers --max-new-tokens 4"
        words = [source, *rest[:2], "--model", str(tiny_llava_dir), "--out", str(tmp_path / "out"), "--sample", sample, "--train", TRAIN]
        assert iterate([*words, "--rounds", "1"]) == 0
        server.scripts = {f"Which colour, {i}?": [fault(404, "no such model")] * 4 for i in range(3)}
        assert iterate([*words, "--rounds", "2"]) == 2
        assert f"must serve the round's policy by the name {second}" in capsys.readouterr().err
        server.scripts.clear()
        server.requests.clear()
        assert iterate([*words, "--rounds", "2"]) == 0
        asked = Counter(request["model"] for request in server.requests)
    assert asked == {second: 12}
    for number in (1, 2):
        pairs = load_rows(tmp_path / "out" / f"round-{number}" / "pairs.parquet")
        assert [row["chosen"][0]["content"] for row in pairs] == ["red"] * 3
        assert json.loads((tmp_path / "out" / f"round-{number}" / "round.json").read_text())["mean_score"] == 0.25

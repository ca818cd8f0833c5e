"""Sampled responses compared by a rubric: win rates by hand, runs over HTTP and with a local judge, what the order does, resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.rubric_scorer import RubricScorer, add_up
from data_tools.sample_pairs import main
from data_tools.scoring import Sampled
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_pair
from mmalign.evaluation.answers import Question
from mmalign.evaluation.judges.both_orders import PositionBias, RubricJudge
from mmalign.evaluation.judges.image_questions import ImageQuestions
from tests.data_tools.test_sample_pairs import files_of, save_photos
from tests.evaluation.judges.chat_server import run_chat_server
from tests.evaluation.judges.test_both_orders import Strict, said


def test_win_rates_keep_their_places(tmp_path: Path) -> None:
    """Letters "a": 1, none, 3, no words, 1. The second loses all, the third wins all, the equal ones tie; one text has nobody to beat."""
    photos = save_photos(tmp_path / "photos", 2)
    scorer = RubricScorer(RubricJudge(Strict(), ImageQuestions(photos)), reading="strict")
    texts = [["a", "b", "aaa", " ", "a"], ["a"], []]
    items = [Sampled(Question(str(i), f"{i % 2}.png", "What?"), None, None, own) for i, own in enumerate(texts)]
    lines = scorer.lines(items, folder=tmp_path)
    assert [line["scores"] for line in lines] == [[0.5, 0.0, 1.0, None, 0.5], [0.0], []]
    # Three different texts, both orders of each two; every winner is named once in each place.
    assert add_up(lines) == PositionBias(pairs=3, inconsistent=0, unknown=0, disagreements=0, first=3, second=3, ties=0)
    assert scorer.tell(lines) == (
        "3 comparisons, 0 without a verdict, 0 in which the orders disagree; 50.0% of the replies with a winner prefer what is shown first"
    )
    assert scorer.fault(lines) is None


def judged(prompt: str) -> str:
    first, second = (len(prompt.rpartition(f"Response {i}: ")[2].split("\n")[0]) for i in (1, 2))
    return said(1, 8) if first > second else said(2, 2) if second > first else said("tie", 5)


def test_a_judge_behind_an_endpoint_sees_the_image(tmp_path: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prefers the longer response, so that the longest is paired with the shortest; resumed to the same bytes without being asked."""
    pytest.importorskip("openai", reason="the judge extra is not installed")
    photos = save_photos(tmp_path / "photos", 2)
    words = [str(photos), "--prompts", "Hm?", "--model", str(tiny_llava_dir), "--scorer", "rubric", "--samples", "3", "--batch-size", "1"]
    words += ["--max-new-tokens", "8", "--temperature", "3", "--rubric-length", "99"]
    with run_chat_server() as server:
        server.answer = judged
        words += ["--url", server.url, "--llm-name", "m"]
        assert main([*words, "--out", str(tmp_path / "whole")]) == 0
        assert {(request["temperature"], request["max_tokens"]) for request in server.requests} == {(0, 99)}
        assert all(request["messages"][0]["content"][0]["type"] == "image_url" for request in server.requests)
        stopped = tmp_path / "stopped"
        shutil.copytree(tmp_path / "whole", stopped)
        (stopped / "chunks" / "000000001.jsonl").unlink()
        before = len(server.requests)
        assert main([*words, "--out", str(stopped)]) == 0
        assert len(server.requests) == before, "the same responses were compared before"
    assert files_of(stopped) == files_of(tmp_path / "whole")
    assert "50.0% of the replies with a winner prefer what is shown first" in capsys.readouterr().out
    lines = [json.loads(line) for path in sorted((stopped / "chunks").glob("*.jsonl")) for line in path.read_text().splitlines()]
    pairs = [read_pair(raw, index=i) for i, raw in enumerate(load_rows(stopped / "pairs"))]
    assert len(pairs) == 2
    for pair, line in zip(pairs, lines, strict=True):
        lengths = [len(text.split("\n")[0]) for text in line["responses"]]
        assert [len(text.split("\n")[0]) for text in (pair.chosen, pair.rejected)] == [max(lengths), min(lengths)]


def test_a_local_judge_that_can_not_write_json(tmp_path: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = save_photos(tmp_path / "photos", 1)
    words = [str(photos), "--prompts", "Hm?", "--model", str(tiny_llava_dir), "--labeler", str(tiny_llava_dir), "--samples", "2"]
    words += ["--scorer", "rubric", "--max-new-tokens", "8", "--temperature", "3", "--rubric-length", "4", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "none of 1 comparisons has a verdict: 2 of 2 replies contradict themselves or can't be read" in capsys.readouterr().err
    assert len((tmp_path / "out" / "replies.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scorer", "rubric"], "--scorer rubric needs a judge that sees the image: --labeler MODEL, or --url URL"),
        (["--scorer", "rubric", "--llm", "folder"], "--scorer rubric needs a judge that sees the image"),
        (["--scorer", "rubric", "--labeler", "folder", "--url", "u"], "--scorer rubric needs a judge that sees the image"),
        (["--scorer", "truth", "--rubric-length", "9"], "--rubric-length is of --scorer rubric; leave it out with --scorer truth"),
    ],
)
def test_what_does_not_fit_together(
    tmp_path: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str], words: list[Any], message: str
) -> None:
    photos = save_photos(tmp_path / "photos", 1)
    assert main([str(photos), "--prompts", "Hm?", "--model", str(tiny_llava_dir), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err

"""Traces: grades by hand, the world's own teacher, runs over HTTP with a judge of known faults, rows that train, resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.collect_traces import main
from data_tools.traces import Trace, TraceCounts, choose_chat, choose_pair, mean_gap
from data_tools.world_traces import write_trace
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.messages import text_of
from mmalign.data.rows import read_chat, read_pair
from mmalign.evaluation.judges.rubric import CATEGORIES, parse_rubric
from tests.data_tools.sets import save_images
from tests.data_tools.test_sample_pairs import files_of
from tests.evaluation.judges.chat_server import run_chat_server
from tests.evaluation.judges.test_both_orders import said


def trace(text: str, side: int = 1) -> Trace:
    return Trace(text, parse_rubric(text), side)


RIGHT, BEST, WRONG, TIE, BROKEN = trace(said(1, 7)), trace(said(1, 9)), trace(said(2, 2)), trace(said("tie", 5)), trace("no JSON")


def test_grades_by_hand() -> None:
    """(7 - 3) / 10 towards the better response; shown second, the same reply is wrong by as much."""
    assert [one.grade for one in (RIGHT, BEST, WRONG, TIE, BROKEN)] == pytest.approx([0.4, 0.8, -0.6, 0, -1])
    assert [one.right for one in (RIGHT, BEST, WRONG, TIE, BROKEN)] == [True, True, False, False, False]
    turned = trace(said(1, 7), side=-1)
    assert (turned.right, turned.grade) == (False, pytest.approx(-0.4))
    assert trace(said(1, 2)).grade == -1, "the winner has not the most points"


def test_what_is_chosen() -> None:
    assert choose_chat([WRONG, BROKEN]) is None
    assert choose_chat([TIE, RIGHT, BEST]) == RIGHT
    assert choose_pair([TIE, RIGHT, BEST, WRONG], graded=False) == (BEST, WRONG)
    assert choose_pair([RIGHT, BROKEN, WRONG], graded=False) == (RIGHT, BROKEN)
    assert choose_pair([RIGHT, BEST], graded=False) is None
    assert choose_pair([RIGHT, BEST], graded=True) == (BEST, RIGHT)
    assert choose_pair([RIGHT, RIGHT], graded=True) is None
    assert choose_pair([WRONG, TIE], graded=True) is None
    # A reply without words can't be trained on.
    assert choose_pair([RIGHT, trace(" ")], graded=False) is None


def test_gaps_need_both_orders() -> None:
    """Means .6 and -.4 of the orders: .1, whatever the number of replies; the inconsistent one counts nowhere."""
    assert mean_gap([[RIGHT, BEST], [BROKEN, trace(said(1, 7), side=-1)]]) == pytest.approx(0.1)
    assert mean_gap([[RIGHT], [BROKEN]]) is None


def test_counts() -> None:
    counts = TraceCounts()
    counts.add([RIGHT, WRONG, TIE, BROKEN, trace(said(1, 7), side=-1)])
    assert counts == TraceCounts(replies=5, inconsistent=1, right=1, ties=1, prefer_first=2, prefer_second=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "world"
    words = f"world build --out {out} --num-scenes 4 --num-pairs 60 --num-eval-scenes 2 --num-workers 1 --easy-share 0.5 --label-noise 0.2"
    assert mmalign(words.split()) == 0
    return out


def test_the_worlds_teacher_is_always_right(world: Path) -> None:
    rows = list(load_rows(world / "pairs"))
    assert {row["truth_flipped"] for row in rows} == {True, False}
    assert len({row["truth_kind"] for row in rows}) > 6
    for row in rows:
        chosen, rejected = (row[name][0]["content"] for name in ("chosen", "rejected"))
        forward, backward = (parse_rubric(write_trace(row, *shown)) for shown in ((chosen, rejected), (rejected, chosen)))
        assert (forward.problems, backward.problems) == ((), ())
        assert forward.winner == (-1 if row["truth_flipped"] else 1)
        assert backward.winner == -(forward.winner or 0)
        assert backward.margin == pytest.approx(-(forward.margin or 0))


def test_the_worlds_trace_by_hand() -> None:
    """A cat more: the statement costs 8 points of 10 in one of two lines, so .4 in the first of three categories."""
    row = {"chosen": "There is a red star and a dog.", "rejected": "There is a red star, a cat and a dog.", "truth_flipped": False}
    reply = json.loads(write_trace(row, row["rejected"], row["chosen"]))
    checks = {dim["name"]: (dim["score_1"], dim["score_2"]) for dim in reply["categories"][0]["dims"]}
    assert checks == {"red star": (5, 5), "cat": (1, 9), "dog": (5, 5)}
    assert [one["name"] for one in reply["categories"]] == list(CATEGORIES)
    assert parse_rubric(json.dumps(reply)).margin == pytest.approx(-0.8 / 3 / 3)
    with pytest.raises(ValueError, match="the row has no truth_flipped"):
        write_trace({"chosen": "a", "rejected": "b"}, "a", "b")


def test_traces_of_the_world_train(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without noise the margins of the rows are those of the truth; with it they tell the flipped ones by their sign."""
    words = [str(world / "pairs"), "--teacher", "world", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "traces.json").read_text())
    flipped = sum(row["truth_flipped"] for row in load_rows(world / "pairs"))
    assert record["all"] == record["sources"]["world"]
    assert (record["all"]["replies"], record["all"]["right"], record["all"]["inconsistent"]) == (120, 2 * (60 - flipped), 0)
    assert record["written"] == {"chats": 2 * (60 - flipped), "pairs": 0, "scored": 60}
    assert f"{2 * (60 - flipped)} chats, 0 pairs, 60 scored written" in capsys.readouterr().out
    for row in load_rows(tmp_path / "out" / "scored.parquet"):
        assert (row["gap_rubric"] < 0) == row["truth_flipped"]
        assert row["score_chosen"] - row["score_rejected"] == pytest.approx(row["gap_rubric"])
    assert main([str(tmp_path / "out" / "scored.parquet"), *words[1:]]) == 2
    assert "scored.parquet is read and would be written over" in capsys.readouterr().err
    chat = read_chat(next(iter(load_rows(tmp_path / "out" / "chats"))), index=0)
    assert len(chat.images) == 1
    assert parse_rubric(text_of(chat.messages[1])).winner == 1


def judged(request: dict[str, Any]) -> str:
    """By the seed: right, wrong, or no JSON; right is the longer response."""
    prompt = next(part["text"] for part in request["messages"][0]["content"] if part["type"] == "text")
    first, second = (len(prompt.rpartition(f"Response {i}: ")[2].split("\n")[0]) for i in (1, 2))
    winner = 1 if first > second else 2
    return [said(winner, 8 if winner == 1 else 2), said(3 - winner, 2 if winner == 1 else 8), "hm"][request["seed"] % 3]


def save_pairs(folder: Path) -> Path:
    save_images(folder / "images", "a.jpg")
    one = {"images": ["a.jpg"], "prompt": "What?", "rejected": "short"}
    rows = [{**one, "chosen": f"a longer answer {i}", "source": f"s{i}"} for i in range(2)]
    rows += [{**one, "images": ["a.jpg", "a.jpg"], "chosen": "a", "source": "s0"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


def test_a_judge_behind_an_endpoint(tmp_path: Path) -> None:
    """Three replies to each order are one of each kind, as their seeds follow each other; resumed to the same bytes."""
    pytest.importorskip("openai", reason="the judge extra is not installed")
    data = save_pairs(tmp_path)
    words = [str(data), "--image-root", str(tmp_path / "images"), "--model", "m", "--samples", "3", "--batch-size", "1"]
    with run_chat_server() as server:
        server.answer_request = judged
        words += ["--endpoint", server.url, "--max-reject-share", "0.5"]
        assert main([*words, "--out", str(tmp_path / "whole")]) == 0
        stopped = tmp_path / "stopped"
        shutil.copytree(tmp_path / "whole", stopped)
        (stopped / "chunks" / "000000001.jsonl").unlink()
        assert main([*words, "--out", str(stopped)]) == 0
    assert files_of(stopped) == files_of(tmp_path / "whole")
    record = json.loads((stopped / "traces.json").read_text())
    assert record["all"] == {"replies": 12, "inconsistent": 4, "right": 4, "ties": 0, "prefer_first": 4, "prefer_second": 4}
    assert [own["replies"] for own in record["sources"].values()] == [6, 6]
    assert record["written"] == {"chats": 4, "pairs": 4, "scored": 2}
    (reject,) = map(json.loads, (stopped / "rejects.jsonl").read_text().splitlines())
    assert "the pair has 2 images and 1 turns; expected one image and one question" in reject["reason"]
    for row in load_rows(stopped / "pairs"):
        pair = read_pair(row, index=0)
        shown_first = text_of(pair.prompt[0]).rpartition("Response 1: ")[2].startswith("a longer")
        assert parse_rubric(pair.chosen).winner == (1 if shown_first else -1)
        assert pair.rejected == "hm"
        assert (row["score_chosen"], row["score_rejected"]) == (pytest.approx(0.6), -1)
    # One right and one wrong reply of the same margin to each order.
    assert [row["gap_rubric"] for row in load_rows(stopped / "scored.parquet")] == pytest.approx([0, 0])


def test_a_local_judge_that_can_not_write_json(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """And a pair whose answer it would read as an image: a reject beside the others."""
    data = save_pairs(tmp_path)
    unread = {"images": ["a.jpg"], "prompt": "What?", "chosen": "an <image>", "rejected": "short", "id": "unread"}
    with data.open("a") as file:
        file.write(json.dumps(unread) + "\n")
    words = [str(data), "--image-root", str(tmp_path / "images"), "--model", str(tiny_llava_dir), "--samples", "2", "--max-new-tokens", "4"]
    assert main([*words, "--max-reject-share", "0.6", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "traces.json").read_text())
    assert (record["all"]["replies"], record["all"]["inconsistent"]) == (8, 8)
    assert record["written"] == {"chats": 0, "pairs": 0, "scored": 0}
    assert not (tmp_path / "out" / "scored.parquet").exists()
    reject = json.loads((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()[-1])
    assert reject["id"] == "unread"
    assert "holds <image>, which LlavaProcessor reads as an image's place" in reject["reason"]


def test_one_teacher_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--teacher", "world", "--model", "m"]):
        with pytest.raises(SystemExit):
            main([str(tmp_path), "--out", str(tmp_path / "out"), *words])
        assert "name the judge with --model, or --teacher world alone" in capsys.readouterr().err

"""Best of n from saved answers: numbers by hand, rows that train, and the way from sampling over a reward model to them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from data_tools.best_of_n import main
from data_tools.sample_pairs import main as sample_pairs
from mmalign.cli import main as mmalign
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_chat, read_list, read_pair
from tests.data_tools.sets import save_images

WORDS = ["--resamples", "100"]


def save_lists(path: Path, *rows: tuple[list[float], list[float]]) -> Path:
    """Rows of answers a, b, c and so on, with scores and truths."""
    lines = [
        {"images": ["a.jpg"], "prompt": "what", "responses": list("abcd"[: len(scores)]), "scores": scores, "true": truths}
        for scores, truths in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(out: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((out / "best_of_n.json").read_text())
    return held


def test_the_curve_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By scores 1, 2, 4 the best of two is 10/3 and is worth (0 + 2 * 9) / 3; the second prompt's answers are all alike."""
    root = save_images(tmp_path / "images", "a.jpg")
    data = save_lists(tmp_path / "lists.jsonl", ([1, 4, 2], [3, 9, 0]), ([2, 2, 2], [1, 0, 5]))
    words = [str(data), "--truth", "true", "--image-root", str(root), *WORDS]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    held = read(tmp_path / "out")
    assert (held["num_prompts"], held["pairs"], held["chats"]) == (2, 1, 2)
    values = [[one["n"], *(one[name]["value"] for name in ("score", "truth", "truth_at_best"))] for one in held["curve"]]
    expected = [[1, (7 / 3 + 2) / 2, 3, 3], [2, (10 / 3 + 2) / 2, (6 + 2) / 2, (7 + 11 / 3) / 2], [3, 3, (9 + 2) / 2, 7]]
    assert values == [pytest.approx(row) for row in expected]
    assert held["curve"][2]["score"]["low"] == 2
    assert held["curve"][2]["score"]["high"] == 4
    assert "2 of 2 prompts; 1 pairs and 2 chats" in capsys.readouterr().out
    (pair,) = load_rows(tmp_path / "out" / "pairs")
    made = read_pair(pair, index=0)
    assert (made.chosen, made.rejected, pair["score_chosen"], pair["score_rejected"]) == ("b", "a", 4, 1)
    chats = [read_chat(row, index=i).messages[-1]["content"] for i, row in enumerate(load_rows(tmp_path / "out" / "chats"))]
    assert [parts[0]["text"] for parts in chats] == ["b", "a"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2


def test_another_column_picks_and_short_rows_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = save_images(tmp_path / "images", "a.jpg")
    data = save_lists(tmp_path / "lists.jsonl", ([1, 4, 2, 0], [3, 9, 0, 10]), ([1, 0], [0, 1]))
    words = [str(data), "--image-root", str(root), *WORDS]
    assert main([*words, "--by", "true", "--largest-n", "4", "--out", str(tmp_path / "out")]) == 0
    held = read(tmp_path / "out")
    assert held["num_prompts"] == 1
    assert [(one["n"], one["score"]["value"]) for one in held["curve"]] == [(1, 5.5), (2, 8.5), (4, 10)]
    assert main([*words, "--out", str(tmp_path / "few"), "--largest-n", "5"]) == 2
    assert "largest_n is 5; expected 1 to 4, the most responses of a row" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "none"), "--truth", "given_scores"]) == 2
    assert "has no column given_scores" in capsys.readouterr().err
    broken = save_lists(tmp_path / "broken.jsonl", ([1, 4, 2], [3, 9]))
    assert main([str(broken), "--out", str(tmp_path / "none"), "--truth", "true"]) == 2
    assert "row 0 has 3 responses, and true is [3, 9]; expected a finite number for each" in capsys.readouterr().err


def test_answers_may_be_messages(tmp_path: Path) -> None:
    """As ``train listwise`` reads them."""
    said = [[{"role": "assistant", "content": text}] for text in ("good", "bad")]
    Dataset.from_list([{"images": [], "prompt": "what", "responses": said, "scores": [2.0, 1.0]}]).to_parquet(tmp_path / "lists.parquet")
    assert main([str(tmp_path / "lists.parquet"), "--out", str(tmp_path / "out"), *WORDS]) == 0
    made = read_pair(load_rows(tmp_path / "out" / "pairs")[0], index=0)
    assert (made.chosen, made.rejected) == ("good", "bad")
    assert read_chat(load_rows(tmp_path / "out" / "chats")[0], index=0).messages[-1]["content"][0]["text"] == "good"


def test_rows_keep_their_images_and_their_system_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = save_images(tmp_path / "images", "a.jpg", "b.jpg")
    asked = [{"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "or"}, {"type": "image"}]}]
    row = {"images": ["b.jpg"], "system": "Be brief.", "prompt": asked, "responses": ["good", "bad"], "scores": [2.0, 1.0]}
    (tmp_path / "lists.jsonl").write_text(json.dumps(row))
    words = ["--image-root", str(root), "--out", str(tmp_path / "out"), *WORDS]
    assert main([str(tmp_path / "lists.jsonl"), *words]) == 0
    expected = read_list(row, index=0, image_root=root)
    pair = read_pair(load_rows(tmp_path / "out" / "pairs")[0], index=0)
    chat = read_chat(load_rows(tmp_path / "out" / "chats")[0], index=0)
    assert (pair.prompt, pair.images) == (chat.messages[:-1], chat.images) == (expected.prompt, expected.images)
    (tmp_path / "lists.jsonl").write_text(json.dumps({**row, "images": []}))
    assert main([str(tmp_path / "lists.jsonl"), *words[:3], str(tmp_path / "none"), *WORDS]) == 2
    assert "row 0 can't be used: prompt has 1 image placeholders beside 1 that hold their own for 0 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1.0, float("nan")]}, "row 1 has 2 responses, and scores is [1.0, nan]; expected a finite number for each"),
        ({"scores": None}, "row 1 has 2 responses, and scores is None; expected a finite number for each"),
        ({"responses": None}, "row 1 has None as responses; expected a list of texts"),
        ({"responses": []}, "row 1 has [] as responses; expected a list of texts"),
    ],
)
def test_what_is_no_list_of_scored_answers_is_told(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"images": ["a.jpg"], "prompt": "what", "responses": ["a", "b"], "scores": [1.0, 2.0]}
    Dataset.from_list([good, {**good, **change}]).to_parquet(tmp_path / "lists.parquet")
    assert main([str(tmp_path / "lists.parquet"), "--out", str(tmp_path / "out"), *WORDS]) == 2
    assert message in capsys.readouterr().err


def test_from_sampling_over_a_reward_model(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """The truth that sampling gave stays beside the reward; the best of all by the truth is what its pairs chose."""
    world, model = tmp_path / "world", str(tiny_llava_dir)
    assert mmalign(f"world build --out {world} --num-scenes 4 --num-pairs 4 --num-eval-scenes 5 --num-workers 1".split()) == 0
    (world / "eval" / "synonyms.txt").write_text("circle\nsquare\ntriangle\nstar\nheart\ncross\nmoon\nring\ndog\ncat\n")
    words = [str(world / "eval"), "--model", model, "--scorer", "truth", "--samples", "3", "--max-new-tokens", "8", "--lists"]
    assert sample_pairs([*words, "--out", str(tmp_path / "sampled")]) == 0
    lists = load_rows(tmp_path / "sampled" / "lists")
    assert [len(row["responses"]) for row in lists] == [3] * 5
    chosen = {row["id"]: row["score_chosen"] for row in load_rows(tmp_path / "sampled" / "pairs")}
    assert chosen == {row["id"]: max(row["scores"]) for row in lists if len(set(row["scores"])) > 1}
    assert mmalign(["score-rewards", str(tmp_path / "sampled" / "lists"), "--model", model, "--out", str(tmp_path / "rewards")]) == 0
    rewarded = tmp_path / "rewards" / "rewarded.parquet"
    assert main([str(rewarded), "--truth", "given_scores", "--out", str(tmp_path / "best"), *WORDS]) == 0
    curve = {one["n"]: one for one in read(tmp_path / "best")["curve"]}
    assert curve[3]["truth_at_best"]["value"] == pytest.approx(sum(max(row["scores"]) for row in lists) / 5)
    picked = [row["given_scores"][row["scores"].index(max(row["scores"]))] for row in load_rows(rewarded)]
    assert curve[3]["truth"]["value"] == pytest.approx(sum(picked) / 5)

"""``mmalign score-rewards``: the rewards of plain forwards beside the rows, implicit ones, stops, and what then trains on them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.cli import main
from mmalign.data.datasets import load_rows
from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_list, read_pair
from mmalign.engine.probe import own_logps
from mmalign.models.load import load_mllm
from mmalign.options.rows import WordingOptions
from tests.commands.training import train
from tests.data_files import save_rows
from tests.difficulty.scored import hashes
from tests.engine.test_rewards import plain_reward
from tests.tiny_models import build_tiny_llava, list_rows, pair_rows


def score(data: Path, model: Path, out: Path, *words: str) -> int:
    try:
        return main(["score-rewards", str(data), "--model", str(model), "--out", str(out), "--batch-size", "4", *words])
    except SystemExit as stop:
        return int(stop.code or 0)


def rewarded(out: Path) -> list[dict[str, Any]]:
    return list(load_rows(out / "rewarded.parquet"))


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "rewards.json").read_text())
    return found


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other weights, and the same words."""
    folder = tmp_path_factory.mktemp("other")
    model, processor = build_tiny_llava(seed=1, scale=1.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_pairs_get_the_rewards_of_plain_forwards(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "source": "ab"[i % 2], "score_chosen": 5} for i, row in enumerate(pair_rows(9))]
    rows[3]["rejected"] = rows[3]["chosen"]
    data, out = save_rows(tmp_path / "pairs.parquet", rows), tmp_path / "out"
    assert score(data, tiny_llava_dir, out, "--max-reject-share", "0.5") == 0
    model, processor = load_mllm(str(tiny_llava_dir))
    found = rewarded(out)
    assert [row["id"] for row in found] == [f"pair-{i}" for i in range(9) if i != 3]
    margins: dict[str, list[float]] = {"a": [], "b": []}
    for row in found:
        pair = read_pair(row, index=0)
        expected = [plain_reward(model, processor, pair, text, WordingOptions()) for text in (pair.chosen, pair.rejected)]
        assert [row["score_chosen"], row["score_rejected"]] == pytest.approx(expected, abs=2e-5)
        assert row["gap_reward"] == pytest.approx(expected[0] - expected[1], abs=4e-5)
        assert row["given_score_chosen"] == 5
        margins[row["source"]].append(expected[0] - expected[1])
    right = {name: sum(m > 0 for m in own) / len(own) for name, own in margins.items()}
    told = summary(out)
    assert {name: own["accuracy"] for name, own in told["sources"].items()} == right
    assert (told["num_rows"], told["num_scored"], told["num_pairs"]) == (9, 8, 8)
    assert told["macro_accuracy"] == pytest.approx(sum(right.values()) / 2)
    assert told["accuracy"] == pytest.approx((right["a"] * 5 + right["b"] * 3) / 8)
    assert told["question"] == "Is this answer right? Answer yes or no."
    printed = capsys.readouterr().out
    assert "8 of 9 rows scored, 8 pairs with a preference" in printed
    assert "mean of sources" in printed
    assert "chosen and rejected are the same text" in (out / "rejects.jsonl").read_text()


def test_lists_get_scores_whether_or_not_they_have_some(tiny_llava_dir: Path, tmp_path: Path) -> None:
    rows = list_rows([3, 2, 4])
    model, processor = load_mllm(str(tiny_llava_dir))
    lists = [read_list(row, index=0) for row in rows]
    expected = [[plain_reward(model, processor, row, text, WordingOptions()) for text in row.responses] for row in lists]
    right = [
        rewards[i] > rewards[j]
        for rewards, row in zip(expected, lists, strict=True)
        for i in range(len(rewards))
        for j in range(len(rewards))
        if row.scores[i] > row.scores[j]
    ]
    assert score(save_rows(tmp_path / "scored.parquet", rows), tiny_llava_dir, tmp_path / "scored") == 0
    bare = [{key: value for key, value in row.items() if key != "scores"} for row in rows]
    assert score(save_rows(tmp_path / "bare.parquet", bare), tiny_llava_dir, tmp_path / "bare") == 0
    for name in ("scored", "bare"):
        for row, rewards in zip(rewarded(tmp_path / name), expected, strict=True):
            assert row["scores"] == pytest.approx(rewards, abs=2e-5)
    assert [row["given_scores"] for row in rewarded(tmp_path / "scored")] == [row.scores for row in lists]
    assert "given_scores" not in rewarded(tmp_path / "bare")[0]
    assert (summary(tmp_path / "scored")["num_pairs"], summary(tmp_path / "bare")["num_pairs"]) == (3 + 1 + 6, 0)
    assert summary(tmp_path / "scored")["accuracy"] == pytest.approx(sum(right) / len(right))


def test_implicit_rewards_are_the_policys_less_its_starts(tiny_llava_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    data = save_rows(tmp_path / "pairs.parquet", pair_rows(5))
    words = ["--kind", "implicit", "--reference", str(tiny_llava_dir), "--beta", "0.3"]
    assert score(data, other_dir, tmp_path / "out", *words) == 0
    models = [load_mllm(str(folder)) for folder in (other_dir, tiny_llava_dir)]
    for row in rewarded(tmp_path / "out"):
        pair = read_pair(row, index=0)
        sums = []
        for model, processor in models:
            encoded = encode_responses(processor, images=pair.images, prompt=pair.prompt, responses=[pair.chosen, pair.rejected])
            with torch.no_grad():
                sums.append([values.sum().item() for values in own_logps(model, encoded)])
        expected = [0.3 * (own - start) for own, start in zip(*sums, strict=True)]
        assert [row["score_chosen"], row["score_rejected"]] == pytest.approx(expected, abs=1e-4)
    # Another beta asks the models nothing.
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jsonl")}
    assert score(data, other_dir, tmp_path / "out", *words[:-1], "0.6") == 0
    assert {path: path.stat().st_mtime_ns for path in shards if "shards" in str(path)}.items() <= shards.items()
    assert summary(tmp_path / "out")["beta"] == 0.6


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, with a broken row in the second."""
    rows = pair_rows(700)
    rows[600]["rejected"] = rows[600]["chosen"]
    return save_rows(tmp_path_factory.mktemp("many") / "pairs.parquet", rows)


@pytest.fixture(scope="module")
def whole(many: Path, tiny_llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert score(many, tiny_llava_dir, out) == 0
    return out


def test_a_killed_run_and_parts_end_with_the_same_bytes(many: Path, whole: Path, tiny_llava_dir: Path, tmp_path: Path) -> None:
    killed, parts = tmp_path / "killed", tmp_path / "parts"
    words = ["score-rewards", str(many), "--model", str(tiny_llava_dir), "--out", str(killed), "--batch-size", "4"]
    process = subprocess.Popen([sys.executable, "-m", "mmalign", *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list(killed.glob("shards/*.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "rewarded.parquet").exists()
    first = (killed / "shards" / "000000000.jsonl").stat().st_mtime_ns
    assert score(many, tiny_llava_dir, killed) == 0
    assert (killed / "shards" / "000000000.jsonl").stat().st_mtime_ns == first
    for part in ("2/2", "1/2"):
        assert score(many, tiny_llava_dir, parts, "--shard", part) == 0
    assert not (parts / "rewards.json").exists()
    assert score(many, tiny_llava_dir, parts) == 0
    for out in (killed, parts):
        kept = {name: digest for name, digest in hashes(out).items() if not name.endswith(".partial")}
        assert kept == hashes(whole)


def test_what_does_not_go_together_is_refused(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_rows(tmp_path / "pairs.parquet", pair_rows(2))
    cases = {
        "--kind implicit and --reference MODEL go together": ["--kind", "implicit"],
        "--question and --answers are for --kind verifier": ["--kind", "implicit", "--reference", "x", "--question", "right?"],
        "beta is 0.0; expected a positive number": ["--kind", "implicit", "--reference", "x", "--beta", "0"],
        "expected two words, the one for right first": ["--answers", "yes"],
    }
    for message, words in cases.items():
        assert score(data, tiny_llava_dir, tmp_path / "refused", *words) == 2
        assert message in capsys.readouterr().err
    assert score(data, tiny_llava_dir, tmp_path / "out") == 0
    for other in (["--question", "is it true"], ["--kind", "implicit", "--reference", str(tiny_llava_dir)]):
        assert score(data, tiny_llava_dir, tmp_path / "out", *other) == 2
        assert "other scores" in capsys.readouterr().err


def test_objectives_train_on_the_scores(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """The reward of a reward model feeds MADPO as it is, and those of lists feed the list objectives."""
    assert score(save_rows(tmp_path / "pairs.parquet", pair_rows(4)), tiny_llava_dir, tmp_path / "pairs") == 0
    data = tmp_path / "pairs" / "rewarded.parquet"
    assert train(tiny_llava_dir, data, tmp_path / "madpo", "--objective", "madpo") == 0
    bare = [{key: value for key, value in row.items() if key != "scores"} for row in list_rows([3, 2, 4])]
    assert score(save_rows(tmp_path / "lists.parquet", bare), tiny_llava_dir, tmp_path / "lists") == 0
    lists = tmp_path / "lists" / "rewarded.parquet"
    assert train(tiny_llava_dir, lists, tmp_path / "adpo", "--objective", "adpo", kind="listwise") == 0

"""``mmalign train reward`` through the command line: a stock checkpoint with its wording, refusals, and a run that is killed."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.cli import main
from mmalign.data.rows import read_pair
from mmalign.engine.rewards import RewardModel, read_wording
from mmalign.options.rows import WordingOptions
from tests.commands.test_resume import assert_same_end, kill_at, start
from tests.commands.training import read_log, train
from tests.data_files import save_rows
from tests.engine.test_rewards import plain_reward
from tests.tiny_models import list_rows, pair_rows

QUESTION = "is there a dog yes or no"


def test_it_leaves_a_stock_checkpoint_that_says_how_it_is_asked(tiny_llava_dir: Path, tmp_path: Path) -> None:
    rows = pair_rows(8)
    data, out = save_rows(tmp_path / "pairs.parquet", rows), tmp_path / "rm"
    assert train(tiny_llava_dir, data, out, "--question", QUESTION, "--answers", "no", "yes", kind="reward") == 0
    wording = WordingOptions(question=QUESTION, answers=["no", "yes"])
    assert read_wording(str(out)) == wording
    # Plain transformers.
    model, processor = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32), AutoProcessor.from_pretrained(out)
    pairs = [read_pair(row, index=i) for i, row in enumerate(rows)]
    found = RewardModel.load(str(out))(pairs, [[row.chosen, row.rejected] for row in pairs])
    for row, rewards in zip(pairs, found, strict=True):
        expected = [plain_reward(model, processor, row, text, wording) for text in (row.chosen, row.rejected)]
        assert rewards == pytest.approx(expected, abs=2e-5)
    assert {"rewards/accuracy", "rewards/margin", "rewards/mean"} <= read_log(out)[0].keys()
    card = (out / "README.md").read_text()
    assert f"trained as a reward model: its logits of two words say how good a response is (asked '{QUESTION}', no or yes)" in card
    assert "mmalign score-rewards" in card


def test_lists_are_trained_on_and_what_is_no_list_is_refused(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = save_rows(tmp_path / "lists.parquet", list_rows([3, 2, 4, 2]))
    assert train(tiny_llava_dir, lists, tmp_path / "rm", "--lists", kind="reward") == 0
    assert read_log(tmp_path / "rm")[-1]["rewards/top1"] >= 0
    capsys.readouterr()
    assert train(tiny_llava_dir, lists, tmp_path / "other", kind="reward") == 2
    assert "has no column chosen, rejected" in capsys.readouterr().err


def test_answers_that_are_no_tokens_stop_before_training(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_rows(tmp_path / "pairs.parquet", pair_rows(2))
    assert train(tiny_llava_dir, data, tmp_path / "rm", "--answers", "certainly", "never", kind="reward") == 2
    assert "the answers certainly and never are not one token each" in capsys.readouterr().err


def test_a_killed_run_ends_like_an_undisturbed_one(tiny_llava_dir: Path, tmp_path: Path) -> None:
    data = save_rows(tmp_path / "pairs.parquet", pair_rows(10))

    def command(out: Path) -> list[str]:
        words = ["--model", str(tiny_llava_dir), "--data", str(data), "--out", str(out), "--schedule", "constant", "--logging-steps", "1"]
        words += ["--max-steps", "24", "--save-steps", "8", "--batch-size", "2", "--learning-rate", "1e-3"]
        return ["train", "reward", *words]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(whole)) == 0
    kill_at(killed / "checkpoints" / "checkpoint-8" / "manifest.json", start(command(killed)))
    assert not list(killed.glob("*.safetensors"))
    assert main(command(killed)) == 0
    assert_same_end(killed, whole)
    assert json.loads((killed / "mmalign_run.json").read_text())["method"] == "reward"

"""``mmalign train`` from files to a checkpoint that plain transformers loads; what it refuses, and what it leaves out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.cli import main
from mmalign.models.load import load_mllm
from tests.data_files import chat_rows, encoded, save_encoded, save_rows, scored_rows

STEP = ["--max-steps", "3", "--batch-size", "4", "--logging-steps", "1", "--learning-rate", "1e-3"]


def train(model: Path, data: Path, out: Path, *words: str, kind: str = "preference") -> int:
    return main(["train", kind, "--model", str(model), "--data", str(data), "--out", str(out), *STEP, *words])


def read_log(out: Path) -> list[dict[str, Any]]:
    return [entry for entry in json.loads((out / "train_log.json").read_text()) if "loss" in entry]


def read_rejects(out: Path) -> dict[str, str]:
    lines = (out / "rejects.jsonl").read_text().splitlines()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rows(tmp_path_factory.mktemp("pairs") / "pairs.parquet", scored_rows(8))


def test_sft_leaves_a_checkpoint_for_plain_transformers(tiny_llava_dir: Path, tmp_path: Path) -> None:
    data = save_rows(tmp_path / "chats.parquet", chat_rows(8))
    assert train(tiny_llava_dir, data, tmp_path / "out", kind="sft") == 0
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    AutoProcessor.from_pretrained(tmp_path / "out")
    before = dict(load_mllm(str(tiny_llava_dir))[0].named_parameters())
    moved = {name.split(".")[1] for name, value in trained.named_parameters() if not torch.equal(value, before[name])}
    assert moved >= {"vision_tower", "multi_modal_projector", "language_model"}
    assert [math.isfinite(entry["loss"]) for entry in read_log(tmp_path / "out")] == [True, True, True]


@pytest.mark.parametrize("mode", ["off", "paper", "paper-norm", "loss-weight"])
def test_preference_logs_rewards_and_quartiles(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, mode: str) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", "--difficulty-mode", mode, "--reference", "copy", "--batch-size", "8") == 0
    first, _, last = read_log(tmp_path / "out")
    # Before the first step the policy is the reference: every margin is 0 and the loss log 2.
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-5)
    if mode != "loss-weight":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["rewards/margin"] > 0
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracy"} <= set(last)
    assert {f"rewards/margin_q{number}" for number in (1, 2, 3, 4)} <= set(last)


def test_preference_with_an_adapter(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(tiny_llava_dir, pairs, out, "--lora-rank", "4") == 0
    assert (out / "adapter_model.safetensors").is_file()
    model, _ = load_mllm(str(out))
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in model.named_parameters())
    assert "library_name: peft" in (out / "README.md").read_text()
    assert train(out, pairs, tmp_path / "again") == 2


def test_a_folder_of_another_run_is_left_alone(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(tiny_llava_dir, pairs, out, "--reference", "cached") == 0
    weights = (out / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert train(tiny_llava_dir, pairs, out, "--reference", "cached", "--beta", "0.5") == 2
    assert "holds another run: its beta is 0.1, this one's 0.5" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == weights
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    assert train(tiny_llava_dir, pairs, tmp_path / "notes") == 2
    assert "is not empty and holds no run of mmalign" in capsys.readouterr().err


def test_broken_rows_are_left_out_with_their_reasons(tiny_llava_dir: Path, tmp_path: Path) -> None:
    rows = [encoded(row) for row in scored_rows(9)]
    png = rows[0]["images"][0]["bytes"]
    rows[0]["images"] = [{"bytes": png[: len(png) // 2], "path": None}]
    rows[1]["images"] = [{"bytes": None, "path": "nowhere/lost.png"}]
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[3]["chosen"] = [{"role": "assistant", "content": "  "}]
    rows[4]["chosen"] = [{"role": "assistant", "content": "dog cat " * 60}]
    rows[5]["difficulty"] = float("nan")
    rows[6]["reference_logps_chosen"] = float("-inf")
    words = ["--max-reject-share", "0.9", "--max-length", "60", "--difficulty-mode", "paper", "--reference", "cached"]
    assert train(tiny_llava_dir, save_encoded(tmp_path / "pairs.parquet", rows), tmp_path / "out", *words) == 0
    reasons = read_rejects(tmp_path / "out")
    expected = {
        "pair-0": "truncated",
        "pair-1": "nowhere/lost.png",
        "pair-2": "chosen and rejected are the same text",
        "pair-3": "chosen is empty",
        "pair-4": "60",
        "pair-5": "difficulty is nan",
        "pair-6": "reference_logps_chosen is -inf",
    }
    assert set(reasons) == set(expected)
    for row_id, text in expected.items():
        assert text in reasons[row_id], (row_id, reasons[row_id])
    record = json.loads((tmp_path / "out" / "mmalign_run.json").read_text())
    assert (record["num_rows"], record["num_rejected"]) == (9, 7)


@pytest.mark.parametrize(
    ("drop", "words", "message"),
    [
        ("rejected", [], "rejected"),
        ("difficulty", ["--difficulty-mode", "paper"], "difficulty"),
        ("reference_logps_chosen", ["--reference", "cached"], "reference_logps_chosen"),
    ],
)
def test_columns_that_are_not_there(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], drop: str, words: list[str], message: str
) -> None:
    rows = [{key: value for key, value in row.items() if key != drop} for row in scored_rows(4)]
    assert train(tiny_llava_dir, save_rows(tmp_path / "pairs.parquet", rows), tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_too_many_broken_rows_stop_the_run(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = scored_rows(4)
    rows[0]["rejected"] = rows[0]["chosen"]
    assert train(tiny_llava_dir, save_rows(tmp_path / "pairs.parquet", rows), tmp_path / "out") == 2
    assert "1 of 4 rows are broken, more than the tolerated share of 5.0%" in capsys.readouterr().err


def test_a_config_key_that_is_no_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("learning_rte: 1e-4\n")
    with pytest.raises(SystemExit):
        main(["train", "preference", "--config", str(tmp_path / "c.yaml")])
    assert "did you mean 'learning_rate'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "adapter-off"], "needs a policy with a LoRA adapter"),
        (["--reference", "cached", "--reference-model", "x/y"], "exclude each other"),
        (["--lora-rank", "4", "--freeze", "projector"], "--freeze is for full weights"),
    ],
)
def test_options_that_contradict(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err

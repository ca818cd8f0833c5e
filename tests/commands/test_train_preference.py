"""``mmalign train preference``: objectives, rewards in the log, difficulty, curriculum, adapters, a teacher as the reference."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from mmalign.cli import main
from mmalign.models.load import load_mllm
from tests.commands.training import read_log, train
from tests.data_files import save_rows, scored_rows
from tests.tiny_models import random_image


@pytest.mark.parametrize(
    "words", [["--objective", "simpo:target_margin=0.5"], ["--objective", "dpo,orpo:weight=0.5"], ["--objective", "ld_dpo", "ipo"]]
)
def test_objectives_train_and_stand_in_the_card(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, words: list[str]) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *words) == 0
    log = read_log(tmp_path / "out")
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["rewards/margin"] > log[0]["rewards/margin"]
    card = (tmp_path / "out" / "README.md").read_text()
    expected = {
        "simpo:target_margin=0.5": "with simpo (beta 2)",
        "dpo,orpo:weight=0.5": "with dpo (beta 0.1) + orpo,",
        "ld_dpo": "with ld_dpo (beta 0.1) + ipo",
    }
    assert expected[words[1]] in card


@pytest.mark.parametrize("mode", ["off", "paper", "paper-norm", "both"])
def test_preference_logs_rewards_and_quartiles(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, mode: str) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", "--difficulty-mode", mode, "--reference", "copy", "--batch-size", "8") == 0
    first, _, last = read_log(tmp_path / "out")
    # Before the first step the policy is the reference: every margin is 0 and the loss log 2.
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-5)
    if mode != "both":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["rewards/margin"] > 0
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracy"} <= set(last)
    assert {f"rewards/margin_q{number}" for number in (1, 2, 3, 4)} <= set(last)


@pytest.mark.parametrize("kind", ["text_config", "vision_config"])
def test_the_dropout_of_a_checkpoint_does_not_part_policy_and_reference(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, kind: str
) -> None:
    """The configuration that is saved keeps it."""
    model = shutil.copytree(tiny_llava_dir, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config[kind]["attention_dropout"] = 0.5
    (model / "config.json").write_text(json.dumps(config))
    assert train(model, pairs, tmp_path / "out", "--reference", "copy", "--difficulty-mode", "off") == 0
    assert read_log(tmp_path / "out")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert json.loads((tmp_path / "out" / "config.json").read_text())[kind]["attention_dropout"] == 0.5


def test_equal_difficulties_train_like_plain_dpo(tiny_llava_dir: Path, tmp_path: Path) -> None:
    """To the last bit of every weight. The paper's mode raises every beta alike: it is plain DPO at beta 0.1 (1 + 0.5)."""
    data = save_rows(tmp_path / "pairs.parquet", [{**row, "difficulty": 0.5} for row in scored_rows(8, reference=tiny_llava_dir)])
    weights = {}
    for mode, beta in (("off", "0.1"), ("paper-norm", "0.1"), ("loss-weight", "0.1"), ("off", "0.15"), ("paper", "0.1")):
        out = tmp_path / f"{mode}-{beta}"
        assert train(tiny_llava_dir, data, out, "--difficulty-mode", mode, "--beta", beta, "--reference", "cached") == 0
        weights[out.name] = load_file(out / "model.safetensors")
    for one, other in (("paper-norm-0.1", "off-0.1"), ("loss-weight-0.1", "off-0.1"), ("paper-0.1", "off-0.15")):
        for name, value in weights[one].items():
            assert torch.equal(value, weights[other][name]), (one, name)
    assert any(not torch.equal(value, weights["off-0.15"][name]) for name, value in weights["off-0.1"].items())


@pytest.mark.parametrize(("curriculum", "order"), [("easy-to-hard", [1, 2, 3, 4]), ("hard-to-easy", [4, 3, 2, 1])])
def test_curriculum_is_the_order_that_is_trained_in(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, curriculum: str, order: list[int]
) -> None:
    """Eight pairs, two a step: each step sees one quarter of difficulty, whatever the order in the file."""
    words = ["--reference", "cached", "--batch-size", "2", "--max-steps", "4"]
    shuffled = tmp_path / "shuffled.parquet"
    Dataset.from_parquet(str(pairs)).select([5, 0, 7, 3, 1, 6, 2, 4]).to_parquet(shuffled)
    assert train(tiny_llava_dir, shuffled, tmp_path / "out", *words, "--curriculum", curriculum) == 0
    seen = [[key for key in entry if "margin_q" in key] for entry in read_log(tmp_path / "out")]
    assert seen == [[f"rewards/margin_q{number}"] for number in order]


def test_selection_is_printed_recorded_and_trained_on(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gaps = [-3.0, 1.0, 0.5, -1.5, 2.0, 0.1, -0.2, 1.0]
    rows = [{**row, "gap_fused": gap} for row, gap in zip(scored_rows(8, reference=tiny_llava_dir), gaps, strict=True)]
    data = save_rows(tmp_path / "pairs.parquet", rows)
    results = {}
    for noisy in ("keep", "drop", "flip", "smooth"):
        out = tmp_path / noisy
        words = [
            "--reference",
            "cached",
            "--noisy-gap",
            noisy,
            "--difficulty-range",
            "0.1",
            "0.9",
            "--batch-size",
            "8",
            "--warmup-ratio",
            "0",
        ]
        assert train(tiny_llava_dir, data, out, *words) == 0
        record = json.loads((out / "mmalign_run.json").read_text())
        results[noisy] = (record["selection"], load_file(out / "model.safetensors"), capsys.readouterr().out)
    assert results["keep"][0] == {"outside_difficulty_range": 2, "trained_on": 6}
    found = {"noisy_gap_threshold": -1.0, "noisy_pairs": 2}
    assert results["drop"][0] == {**found, "noisy_gap": "drop", "outside_difficulty_range": 1, "trained_on": 5}
    assert results["flip"][0] == {**found, "noisy_gap": "flip", "outside_difficulty_range": 2, "trained_on": 6}
    assert "noisy gaps: 2 of 8 pairs, fused gap at or below -1.000 standard deviations, dropped" in results["drop"][2]
    assert "difficulty from 0.1 to 0.9: 5 of 6 pairs remain" in results["drop"][2]
    assert "on 5 of 8 rows" in results["drop"][2]
    for one, other in itertools.combinations(results, 2):
        assert any(not torch.equal(value, results[other][1][name]) for name, value in results[one][1].items()), (one, other)


def test_preference_with_an_adapter(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(tiny_llava_dir, pairs, out, "--lora-rank", "4") == 0
    assert (out / "adapter_model.safetensors").is_file()
    model, _ = load_mllm(str(out))
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in model.named_parameters())
    assert "library_name: peft" in (out / "README.md").read_text()
    random_image(0).save(tmp_path / "0.png")
    question = {"question_id": 1, "image": "0.png", "text": "is there a dog", "label": "yes"}
    (tmp_path / "pope_random.jsonl").write_text(json.dumps(question) + "\n")
    asked = ["evaluate", "pope", "--data", str(tmp_path / "pope_random.jsonl"), "--images", str(tmp_path), "--max-new-tokens", "3"]
    assert main([*asked, "--model", str(out), "--out", str(tmp_path / "results")]) == 0
    assert json.loads((tmp_path / "results" / "pope.json").read_text())["num_answers"] == 1
    assert train(out, pairs, tmp_path / "again") == 2


def test_a_teacher_as_the_reference_tells_where_rewards_begin(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", "--reference", "model") == 2
    assert "--reference model needs the model: name it with --reference-model" in capsys.readouterr().err
    twin = ["--reference", "model", "--reference-model", str(tiny_llava_dir), "--objective", "kto_pair"]
    assert train(tiny_llava_dir, pairs, tmp_path / "twin", *twin) == 0
    assert "rewards before the first step" not in capsys.readouterr().out
    shutil.copytree(tiny_llava_dir, tmp_path / "teacher")
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    scaled = {name: value * (1.2 if "mlp" in name else 1) for name, value in weights.items()}
    save_file(scaled, tmp_path / "teacher" / "model.safetensors", metadata={"format": "pt"})
    words = ["--reference-model", str(tmp_path / "teacher"), "--objective", "kto_pair", "--center-rewards"]
    assert train(tiny_llava_dir, pairs, tmp_path / "taught", *words) == 0
    assert "rewards before the first step, on 8 pairs: chosen " in capsys.readouterr().out

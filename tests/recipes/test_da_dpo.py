"""The DA-DPO recipes: their options parse, their stages follow from one another, and each runs on a tiny model of its own family.

What run.sh prints is what it runs; the default suite runs those commands in this process, ``-m slow`` runs the shell file itself.
"""

import json
import math
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel

from data_tools import convert_pairs
from mmalign import cli
from mmalign.config import parse_options
from mmalign.models.load import load_mllm
from mmalign.training.arguments import build_training_arguments

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "da_dpo" / "run.sh"
RECIPES = sorted(path.parent.name for path in SCRIPT.parent.glob("*/train.yaml"))
CLASSES = {
    "llava-1.5-7b": "LlavaForConditionalGeneration",
    "llava-1.5-13b": "LlavaForConditionalGeneration",
    "qwen2.5-vl-3b": "Qwen2_5_VLForConditionalGeneration",
    "qwen3-vl-2b": "Qwen3VLForConditionalGeneration",
    "smolvlm2-2.2b": "SmolVLMForConditionalGeneration",
}
FULL = ["--set", "rlhf-v", "--files", "a.parquet", "b.parquet", "--bench", "bench", "--out", "out"]
PAIRS, BATCH = 24, 4


def run_script(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", str(SCRIPT), *words], env=environment, capture_output=True, text=True, timeout=900, check=False)


def printed(*words: str) -> list[list[str]]:
    done = run_script(*words, "--print")
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def parse(words: list[str]) -> Any:
    """Parse a printed command as mmalign would."""
    words = words[words.index("mmalign") + 1 :]
    name = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in cli.COMMANDS)
    return parse_options(cli.COMMANDS[name].options_class(), words[len(name.split()) :], prog=name, description="")


def test_every_family_has_its_recipe() -> None:
    assert set(CLASSES) == set(RECIPES)


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("recipe", RECIPES)
def test_options_are_those_of_the_commands(recipe: str, gpus: int, tmp_path: Path) -> None:
    commands = printed(recipe, *FULL, "--gpus", str(gpus))
    assert [line[line.index("-m") + 2] if "-m" in line else line[1] for line in commands] == [
        "data_tools/convert_pairs.py", "score-difficulty", "train", *["evaluate"] * 6, "report",
    ]  # fmt: skip
    launcher = ROOT / commands[1][commands[1].index("--config_file") + 1]
    assert launcher.is_file() or not launcher.parent.is_dir()
    converted = parse_options(convert_pairs.ConvertOptions, commands[0][2:], prog="convert_pairs", description="")
    assert converted.set == "rlhf-v"
    assert (len(converted.files), converted.max_words) == (2, 350)
    score, train, *evaluations, report = map(parse, commands[1:])
    assert converted.out / "pairs" == score.pairs
    assert train.data == score.out / "scored.parquet"
    # The cached reference is that model in that precision, over rows of that length.
    assert (train.model, train.dtype, train.max_length, train.reference) == (score.mllm, score.dtype, score.max_length, "cached")
    assert train.batch_size * train.gradient_accumulation_steps * gpus == 32
    assert [e.benchmark for e in evaluations] == ["pope", "chair", "amber"] * 2
    assert [e.model for e in evaluations] == [train.model] * 3 + [str(train.out)] * 3
    assert {e.out for e in evaluations} == set(report.results)
    build_training_arguments(parse([*commands[2], "--precision", "float32"]), output_dir=tmp_path)


def test_llava_has_the_papers_values() -> None:
    for recipe in ("llava-1.5-7b", "llava-1.5-13b"):
        train = parse(printed(recipe, *FULL, "--gpus", "8")[2])
        assert (train.lora_rank, train.lora_alpha, train.lora_dropout) == (32, 256, 0.05)
        assert (train.learning_rate, train.schedule, train.warmup_ratio, train.weight_decay) == (2e-6, "cosine", 0.03, 0.0)
        assert (train.objective, train.beta, train.difficulty_mode, train.sft_weight) == (["dpo"], 0.1, "paper", 0.0)
        assert (train.batch_size, train.gradient_accumulation_steps, train.epochs, train.max_steps) == (4, 1, 1.0, -1)
        assert (train.precision, train.gradient_checkpointing, train.optimizer, train.max_length) == ("bfloat16", True, "adamw", 2048)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llava-2"], "no recipe llava-2; known: llava-1.5-13b llava-1.5-7b"),
        (["qwen3-vl-2b", "--gpus", "3", "--files", "a", "--bench", "b"], "--gpus is 3; expected 1, 2, 4 or 8"),
        (["qwen3-vl-2b", "--bench", "b"], "--files is missing"),
        (["qwen3-vl-2b", "--files", "a"], "--bench is missing"),
        (["qwen3-vl-2b", "--out"], "--out needs a value"),
        (["qwen3-vl-2b", "--smok"], "unknown option --smok"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], message: str) -> None:
    done = run_script(*words)
    assert done.returncode == 2
    assert message in done.stderr


def run_here(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a printed command in this process."""
    if "mmalign" in words:
        assert cli.main(words[words.index("mmalign") + 1 :]) == 0
    elif "-m" in words:
        monkeypatch.setattr(sys, "argv", words[2:])
        runpy.run_module(words[2], run_name="__main__")
    else:
        assert convert_pairs.main(words[2:]) == 0


def check_outputs(recipe: str, out: Path) -> None:
    """Hold what the stages left to what they are for."""
    assert json.loads((out / "inputs" / "mllm" / "config.json").read_text())["architectures"] == [CLASSES[recipe]]
    scored = Dataset.from_parquet(str(out / "difficulty" / "scored.parquet"))
    assert len(scored) == PAIRS
    difficulty = torch.tensor(scored["difficulty"])
    assert (difficulty >= 0).all()
    assert (difficulty <= 1).all()
    assert difficulty.std() > 0.05
    weights = json.loads((out / "difficulty" / "difficulty.json").read_text())["statistics"]["all"]
    voted = sum(weights[name]["weight"] * torch.tensor(scored[f"easiness_{name}"]) for name in ("contrastive", "generative"))
    torch.testing.assert_close(difficulty, 1 - voted)
    gaps = torch.tensor(scored["reference_logps_chosen"]) - torch.tensor(scored["reference_logps_rejected"])
    torch.testing.assert_close(torch.tensor(scored["gap_generative"]), gaps)

    log = [row for row in json.loads((out / "model" / "train_log.json").read_text()) if "loss" in row]
    assert len(log) == 3
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in log)
    # The adapter starts at zero and the policy is its reference: the margin is rounding, in bfloat16 too, the loss log 2.
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert log[0]["rewards/margin"] == pytest.approx(0, abs=1e-3)
    # A batch's mean of 0.1 (1 + easiness), all of them in [0.1, 0.2].
    scales = sorted((0.1 * (2 - difficulty)).tolist())
    assert scales[0] >= 0.1
    assert scales[-1] <= 0.2
    for row in log:
        assert sum(scales[:BATCH]) / BATCH - 1e-6 <= row["difficulty/beta"] <= sum(scales[-BATCH:]) / BATCH + 1e-6
    assert len({row["difficulty/beta"] for row in log}) == 3

    results = {
        name: {path.stem: json.loads(path.read_text()) for path in (out / "results" / name).glob("*.json")} for name in ("before", "after")
    }
    for by_benchmark in results.values():
        assert set(by_benchmark) == {"pope", "chair", "amber"}
        questions = {name: sum(1 for _ in (out / "results" / "before" / f"{name}_answers.jsonl").open()) for name in by_benchmark}
        assert {name: result["num_answers"] for name, result in by_benchmark.items()} == questions
        assert 0 <= by_benchmark["pope"]["metrics"]["pope/accuracy"] <= 1
        # POPE's questions are balanced, and AMBER's are the first split of the same.
        assert by_benchmark["pope"]["metrics"]["pope/always_yes/accuracy"] == pytest.approx(0.5)
        assert by_benchmark["amber"]["metrics"]["amber/always_no/accuracy"] == pytest.approx(50.0, abs=0.1)
    assert recipe in (out / "report" / "report.md").read_text()

    model, _ = load_mllm(str(out / "model"), dtype="float32")
    assert isinstance(model, PeftModel)
    trained = {name: value for name, value in model.named_parameters() if "lora_B" in name}
    assert trained
    assert all(value.abs().max() > 0 for value in trained.values())
    # The language model's linear layers and nothing else.
    assert not [name for name in trained if "vision" in name or "visual" in name or "lm_head" in name]
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (32, 256, 0.05)


@pytest.mark.parametrize("recipe", [pytest.param(name, marks=[] if name == "llava-1.5-7b" else pytest.mark.slow) for name in RECIPES])
def test_smoke_size_runs_every_stage(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in printed(recipe, "--smoke", "--out", str(tmp_path)):
        run_here(words, monkeypatch)
    check_outputs(recipe, tmp_path)


@pytest.mark.slow
def test_the_shell_file_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The files as run.sh runs them; given again, finished stages are passed over, the lost one and the report are made anew."""
    words = ["qwen3-vl-2b", "--smoke", "--out", str(tmp_path)]
    done = run_script(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    check_outputs("qwen3-vl-2b", tmp_path)
    before = (tmp_path / "results" / "after" / "pope.json").read_bytes()
    (tmp_path / "results" / "after" / "pope.json").unlink()
    again = run_script(*words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count(" is there\n") == len(printed(*words)) - 2
    assert json.loads(before)["metrics"] == json.loads((tmp_path / "results" / "after" / "pope.json").read_text())["metrics"]

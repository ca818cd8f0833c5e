"""``mmalign train preference --chasing``: what is left in the end, and the runs that it must equal bit for bit."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from mmalign.cli import main
from mmalign.training.chasing import CHASE_FILE
from tests.commands.test_resume import assert_same_end, command, read_weights
from tests.data_files import save_rows, scored_rows

LORA = ["--lora-rank", "4", "--max-grad-norm", "0.5"]
# The slow adapter leads now and then: its rate is not much lower, and the fast one's so high that its loss goes up and down.
CHASING = [*LORA, "--chasing", "--chasing-steps", "3", "--chasing-rate", "0.5", "--learning-rate", "3e-2"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_llava_dir: Path) -> Path:
    return save_rows(tmp_path_factory.mktemp("pairs") / "pairs.parquet", scored_rows(10, reference=tiny_llava_dir))


def read_log(out: Path) -> list[dict[str, float]]:
    return [entry for entry in json.loads((out / "train_log.json").read_text()) if "loss" in entry]


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


def test_without_a_weight_they_are_two_runs_of_dpo(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    """Bit for bit, though their gradients are scaled down to a norm, and the slow one's learning rate is a share of the other's."""
    chased = ["--chasing", "--chasing-weight", "0", "--chasing-steps", "100", "--chasing-rate", "0.25"]
    assert main(command(tiny_llava_dir, pairs, tmp_path / "both", *LORA, *chased)) == 0
    for name, rate in (("fast", "1e-3"), ("slow", "2.5e-4")):
        assert main(command(tiny_llava_dir, pairs, tmp_path / name, *LORA, "--learning-rate", rate)) == 0
    fast, slow = (read_weights(tmp_path / name) for name in ("fast", "slow"))
    assert_equal(read_weights(tmp_path / "both"), fast)
    assert_equal(read_weights(tmp_path / "both" / "slow"), slow)
    assert any(not torch.equal(fast[name], slow[name]) for name in fast)
    both, one, other = (read_log(tmp_path / name) for name in ("both", "fast", "slow"))
    assert [step["rewards/margin"] for step in both] == [step["rewards/margin"] for step in one]
    assert [step["loss/slow"] for step in both] == pytest.approx([step["loss"] for step in other], abs=1e-4)


def test_at_equal_rates_nobody_leads(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    """Adapters stay equal, whatever the chase weighs: their lead is 0, and each pays ln 2 of it."""
    chased = ["--chasing", "--chasing-weight", "2", "--chasing-steps", "4", "--chasing-rate", "1"]
    assert main(command(tiny_llava_dir, pairs, tmp_path / "even", *LORA, *chased)) == 0
    assert_equal(read_weights(tmp_path / "even" / "slow"), read_weights(tmp_path / "even"))
    for step in read_log(tmp_path / "even"):
        assert step["chasing/lead"] == 0.0
        assert step["chasing/role"] == 0.0
        assert step["loss/fast"] == step["loss/slow"]
    assert main(command(tiny_llava_dir, pairs, tmp_path / "dpo", *LORA)) == 0
    weights = read_weights(tmp_path / "dpo")
    assert any(not torch.equal(value, weights[name]) for name, value in read_weights(tmp_path / "even").items()), "the chase was paid"


def test_a_chase_that_resumes_keeps_roles_and_bits(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From step 8, inside an interval of 3, and from its last step, where only saving is left."""
    whole = tmp_path / "whole"
    assert main(command(tiny_llava_dir, pairs, whole, *CHASING, "--save-total-limit", "3")) == 0
    held = json.loads((whole / "checkpoints" / "checkpoint-8" / CHASE_FILE).read_text())
    assert held["sums"]["default"] > 0
    assert held["sums"]["slow"] > 0
    assert {step["chasing/role"] for step in read_log(whole)} == {0.0, 1.0}, "each led once"
    for kept in (8, 24):
        stopped = tmp_path / f"stopped-{kept}"
        shutil.copytree(whole, stopped)
        record = json.loads((whole / "mmalign_run.json").read_text())
        record["options"]["out"] = str(stopped)
        (stopped / "mmalign_run.json").write_text(json.dumps(record))
        for later in [path for path in (stopped / "checkpoints").glob("checkpoint-*") if int(path.name.split("-")[1]) > kept]:
            shutil.rmtree(later)
        for saved in (stopped, stopped / "slow"):
            (saved / "adapter_model.safetensors").unlink()
        capsys.readouterr()
        assert main(command(tiny_llava_dir, pairs, stopped, *CHASING, "--save-total-limit", "3")) == 0
        assert f"resuming from {stopped}/checkpoints/checkpoint-{kept}" in capsys.readouterr().out
        assert_same_end(stopped, whole)
        assert_equal(read_weights(stopped / "slow"), read_weights(whole / "slow"))


def test_the_leader_is_saved_as_the_one_adapter(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever led last: stock PEFT loads it from OUT, and the other one from OUT/slow."""
    for steps in (5, 24):
        out = tmp_path / str(steps)
        assert main(command(tiny_llava_dir, pairs, out, *CHASING, "--max-steps", str(steps), "--save-steps", str(steps))) == 0
        said = capsys.readouterr().out
        checkpoint = out / "checkpoints" / f"checkpoint-{steps}"
        held = json.loads((checkpoint / CHASE_FILE).read_text())
        leader = held["leader"]
        assert f"the {'fast' if leader == 'default' else 'slow'} adapter leads after {held['num_changes']} changes" in said
        fast, slow = load_file(checkpoint / "adapter_model.safetensors"), load_file(checkpoint / "slow" / "adapter_model.safetensors")
        assert_equal(read_weights(out), fast if leader == "default" else slow)
        assert_equal(read_weights(out / "slow"), slow if leader == "default" else fast)
        base = AutoModelForImageTextToText.from_pretrained(tiny_llava_dir)
        loaded = PeftModel.from_pretrained(base, out)
        assert list(loaded.peft_config) == ["default"]
    assert "chase each other" in (out / "README.md").read_text()
    merged = tmp_path / "merged"
    assert main(["merge", str(out / "slow"), "--out", str(merged)]) == 0
    assert (merged / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    assert "chase each other" in (out / "slow" / "README.md").read_text()


def test_in_four_bits(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nf4"
    more = ["--quantization", "nf4", "--max-steps", "3", "--chasing-steps", "1"]
    assert main(command(tiny_llava_dir, pairs, out, *CHASING, *more)) == 0
    assert len(read_log(out)) == 3
    assert main(["merge", str(out / "slow"), "--out", str(tmp_path / "merged")]) == 0
    assert "in nf4" in capsys.readouterr().out
    assert read_log(out)[0]["loss/fast"] == pytest.approx(math.log(2), abs=1e-4)

"""Weights in 4 bits from the command line: one option in every command, and what doesn't go together."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText

from mmalign.cli import COMMANDS, main
from mmalign.data.encode import encode_responses
from mmalign.data.rows import read_pair
from mmalign.engine.batch import collate_prompts
from mmalign.engine.logps import compute_response_logps
from mmalign.models.load import load_mllm
from mmalign.options.precision import PrecisionOptions
from tests.data_files import chat_rows, save_rows, scored_rows
from tests.tiny_models import pair_rows

STEP = ["--max-steps", "2", "--batch-size", "4", "--logging-steps", "1", "--learning-rate", "1e-3"]
QLORA = ["--quantization", "nf4", "--lora-rank", "4"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rows(tmp_path_factory.mktemp("pairs") / "pairs.parquet", scored_rows(8))


def train(model: Path, data: Path, out: Path, *words: str, kind: str = "preference") -> int:
    return main(["train", kind, "--model", str(model), "--data", str(data), "--out", str(out), *STEP, *words])


def first_loss(out: Path) -> float:
    return json.loads((out / "train_log.json").read_text())[0]["loss"]


def logps(model: torch.nn.Module, processor: object) -> torch.Tensor:
    rows = [read_pair(raw, index=i) for i, raw in enumerate(pair_rows(2))]
    encoded = [encode_responses(processor, images=r.images, prompt=r.prompt, responses=[r.chosen, r.rejected]) for r in rows]
    with torch.no_grad():
        return compute_response_logps(model, collate_prompts(encoded, pad_token_id=0)).token_logps


def test_none_is_a_kind_and_not_the_same_as_not_given(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    """A reference in full precision beside a policy in 4 bits: another model, from the first step on."""
    (tmp_path / "run.yaml").write_text("reference_quantization: none\n")
    for name, words in {"line": ["--reference-quantization", "none"], "file": ["--config", str(tmp_path / "run.yaml")]}.items():
        assert train(tiny_llava_dir, pairs, tmp_path / name, *QLORA, *words) == 0
        assert first_loss(tmp_path / name) != pytest.approx(math.log(2), abs=1e-6)


def test_qlora_trains_and_merges_to_a_plain_checkpoint(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *QLORA) == 0
    assert "14 linear layers of the language model are in 4 bits, 65% of its weights" in capsys.readouterr().out
    # The reference is the 4-bit policy with its adapter off: the same model at the first step.
    assert first_loss(tmp_path / "out") == pytest.approx(math.log(2), abs=1e-6)
    # In how many bits the base was held is read from the run's record.
    assert main(["merge", str(tmp_path / "out"), "--out", str(tmp_path / "merged")]) == 0
    assert "in nf4, saved in" in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "out"), "--quantization", "none", "--out", str(tmp_path / "whole")]) == 0
    assert "nf4" not in capsys.readouterr().out
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    adapted, processor = load_mllm(str(tmp_path / "out"), quantization="nf4")
    torch.testing.assert_close(logps(plain, processor), logps(adapted, processor), rtol=0, atol=1e-4)


def test_checkpoints_and_sums_of_adapters_know_how_their_base_was_held(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *QLORA, "--save-steps", "1") == 0
    begun = str(tmp_path / "out" / "checkpoints" / "checkpoint-1")
    both = ["combine-adapters", str(tmp_path / "out"), begun, "--weights", "1", "0", "--out", str(tmp_path / "sum")]
    assert main(both) == 0
    capsys.readouterr()
    for adapter in (begun, str(tmp_path / "sum")):
        assert main(["merge", adapter, "--out", str(tmp_path / "merged" / Path(adapter).name)]) == 0
        assert "in nf4, saved in" in capsys.readouterr().out
        caplog.clear()
        load_mllm(adapter, quantization="nf4")
        assert not caplog.records
        load_mllm(adapter)
        assert "was trained on weights with quantization nf4, and these have none" in caplog.text


def test_a_live_reference_in_four_bits_is_the_cached_one(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    """Full weights train beside a 4-bit copy of where they began; its log-probabilities may come from cache-logps as well."""
    cache = ["cache-logps", str(pairs), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "cache"), "--quantization", "nf4"]
    assert main(cache) == 0
    cached = tmp_path / "cache" / "cached.parquet"
    held = set(load_dataset("parquet", data_files=str(cached), split="train")["reference_fingerprint"])
    assert [one.rsplit(", ", 1)[1] for one in held] == ["nf4"]
    words = ["--reference-quantization", "nf4"]
    assert train(tiny_llava_dir, cached, tmp_path / "live", *words) == 0
    assert train(tiny_llava_dir, cached, tmp_path / "cached", "--reference", "cached", *words) == 0
    live = first_loss(tmp_path / "live")
    assert first_loss(tmp_path / "cached") == pytest.approx(live, abs=1e-4)
    # The policy is not the reference, as it is where both are in full precision.
    assert abs(live - math.log(2)) > 1e-3


def test_log_probabilities_of_other_bits_are_stale(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache-logps", str(pairs), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "cache")]) == 0
    capsys.readouterr()
    assert train(tiny_llava_dir, tmp_path / "cache" / "cached.parquet", tmp_path / "out", *QLORA, "--reference", "cached") == 2
    error = capsys.readouterr().err
    assert "the cached log-probabilities are stale" in error
    assert "float32, nf4; run mmalign cache-logps with the reference, in its --dtype and --quantization" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quantization", "nf4"], "--quantization nf4 freezes the weights; set --lora-rank to train an adapter on them (QLoRA)"),
        (
            ["--lora-rank", "4", "--reference", "adapter-off", "--reference-quantization", "nf4"],
            "--reference adapter-off is the policy's own weights, with --quantization none; for --reference-quantization nf4 use",
        ),
        (
            ["--objective", "simpo", "--reference-quantization", "nf4"],
            "objective simpo compares with no reference; leave --reference, --reference-model, --reference-quantization",
        ),
    ],
)
def test_what_does_not_go_together(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_quantised_checkpoint_trains_below_an_adapter_only(
    tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = load_mllm(str(tiny_llava_dir), quantization="nf4")
    model.save_pretrained(tmp_path / "small")
    processor.save_pretrained(tmp_path / "small")
    chats = save_rows(tmp_path / "chats.parquet", chat_rows(4))
    assert train(tmp_path / "small", chats, tmp_path / "out", kind="sft") == 2
    assert "is quantised and can't train; set --lora-rank" in capsys.readouterr().err
    assert train(tmp_path / "small", chats, tmp_path / "out", "--lora-rank", "4", kind="sft") == 0
    assert main(["upcycle", str(tmp_path / "small"), "--out", str(tmp_path / "sparse")]) == 2
    assert "is quantised; upcycle the checkpoint that it was made from" in capsys.readouterr().err


def test_every_command_that_takes_a_precision_takes_bits() -> None:
    takes = {"train sft", "train preference", "train listwise", "score-difficulty", "cache-logps", "evaluate"}
    found = set()
    for name, command in COMMANDS.items():
        found |= {name} if issubclass(command.options_class(), PrecisionOptions) else set()
    assert found >= takes


def test_merge_refuses_what_is_no_adapter(tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(tiny_llava_dir), "--out", str(tmp_path / "out")]) == 2
    assert "expected a folder with adapter_config.json" in capsys.readouterr().err

"""A command's output holds what a user can act on, and nothing else."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from mmalign.terminal import quiet_libraries
from tests.data_files import chat_rows, save_rows

KERNEL = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure you already `pip install kernels`"


def test_a_training_command_prints_no_message_of_a_library(tiny_llava_dir: Path, tmp_path: Path) -> None:
    data = save_rows(tmp_path / "chats.parquet", chat_rows(4))
    words = ["--model", str(tiny_llava_dir), "--data", str(data), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    done = subprocess.run([sys.executable, "-m", "mmalign", "train", "sft", *words], capture_output=True, text=True, check=True)
    # Bars that were there and went leave an empty line.
    shown = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in shown if not line.startswith("checking rows")] == []
    for words_of_libraries in ("gemm_4bit", "aligned accordingly", "Generating train split", "Loading weights", "Writing model shards"):
        assert words_of_libraries not in done.stdout + done.stderr


def test_a_program_that_asks_for_a_function_sees_no_message_of_a_library() -> None:
    code = "import mmalign, os; mmalign.train_sft; print(os.environ.get('HF_DATASETS_DISABLE_PROGRESS_BARS'))"
    outside = {name: value for name, value in os.environ.items() if name != "HF_DATASETS_DISABLE_PROGRESS_BARS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=outside)
    # Bars are the program's own choice.
    assert (done.stdout, done.stderr) == ("None\n", "")


@pytest.mark.parametrize(
    ("name", "message", "is_kept"),
    [
        ("bitsandbytes.backends.cpu.ops", KERNEL, False),
        ("bitsandbytes.backends.cpu.ops", "something else", True),
        ("transformers.modeling_utils", "CLIPVisionModel LOAD REPORT from: x\ntext_model.weight | UNEXPECTED |", False),
        ("transformers.modeling_utils", "CLIPVisionModelWithProjection LOAD REPORT from: x\ntext_model.weight | UNEXPECTED |", False),
        ("transformers.modeling_utils", "CLIPVisionModel LOAD REPORT from: x\na | UNEXPECTED |\nb | MISSING |", True),
        ("transformers.trainer_utils", "mtime may not be reliable on this filesystem, falling back to numerical ordering", False),
        ("transformers.modeling_utils", "LlavaForConditionalGeneration LOAD REPORT from: x\na | UNEXPECTED |", True),
    ],
)
def test_only_the_named_messages_are_held_back(name: str, message: str, is_kept: bool) -> None:
    for _ in range(2):
        quiet_libraries()
    record = logging.LogRecord(name, logging.WARNING, "f.py", 1, message, None, None)
    assert bool(logging.getLogger(name).filter(record)) == is_kept


def test_a_tower_out_of_a_whole_clip_is_loaded_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(text_config=sizes | {"vocab_size": 9}, vision_config=sizes | {"image_size": 8, "patch_size": 4})
    CLIPModel(config).save_pretrained(tmp_path)
    logger = logging.getLogger("transformers.modeling_utils")
    for name, value in (("handlers", [caplog.handler]), ("filters", []), ("level", logging.WARNING), ("disabled", False)):
        monkeypatch.setattr(logger, name, value)
    CLIPVisionModel.from_pretrained(tmp_path)
    assert "CLIPVisionModel LOAD REPORT" in caplog.text
    caplog.clear()
    quiet_libraries()
    CLIPVisionModel.from_pretrained(tmp_path)
    assert "LOAD REPORT" not in caplog.text

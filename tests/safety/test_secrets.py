"""Keys and tokens of the environment and of options stay out of everything that is written or printed."""

import os
from pathlib import Path

import pytest

from mmalign.cli import main
from tests.data_files import chat_rows, save_rows
from tests.evaluation.judges.chat_server import run_chat_server
from tests.safety.readers import lines, write_mmhal

SECRETS = {"HF_TOKEN": "hf_" + "s3cr3t" * 6, "OPENAI_API_KEY": "sk-" + "0p3n" * 10, "HUGGING_FACE_HUB_TOKEN": "hf_" + "0ld" * 12}
HUB_TOKEN = "hf_" + "opti0n" * 6


def files_with(folder: Path, *secrets: str) -> list[str]:
    words = [secret.encode() for secret in secrets]
    return [str(path) for path in folder.rglob("*") if path.is_file() and any(word in path.read_bytes() for word in words)]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return [*SECRETS.values(), HUB_TOKEN]


def test_training_keeps_no_secret(secrets: list[str], tiny_llava_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Record, card, log, checkpoints with their arguments, and what is printed; a token in the options too."""
    data = save_rows(tmp_path / "chats.parquet", chat_rows(4))
    config = tmp_path / "run.yaml"
    config.write_text(f"trainer: {{hub_token: {HUB_TOKEN}}}\n")
    words = ["--model", str(tiny_llava_dir), "--data", str(data), "--out", str(tmp_path / "out"), "--max-steps", "1", "--batch-size", "2"]
    assert main(["train", "sft", *words, "--config", str(config)]) == 0
    assert not files_with(tmp_path / "out", *secrets)
    assert '"hub_token": "[secret]"' in (tmp_path / "out" / "mmalign_run.json").read_text()
    # The same command goes on with the same run: what is hidden compares equal.
    assert main(["train", "sft", *words, "--config", str(config)]) == 0
    captured = capfd.readouterr()
    assert not [secret for secret in secrets if secret in captured.out + captured.err]


def test_a_judge_behind_an_endpoint_leaves_no_key(secrets: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The server quotes the key in an answer and in a refusal."""
    data = tmp_path / "data"
    data.mkdir()
    write_mmhal(data)
    key = os.environ["OPENAI_API_KEY"]
    with run_chat_server() as server:
        server.answer = lambda prompt: f"Rating: 4, asked with {key}"
        words = ["mmhal", "--data", str(data), "--answers", str(data / "answers.json"), "--out", str(tmp_path / "out")]
        assert main(["evaluate", *words, "--judge-url", server.url, "--judge-model", "m"]) == 0
    assert not files_with(tmp_path, *secrets)
    captured = capfd.readouterr()
    assert not [secret for secret in secrets if secret in captured.out + captured.err]


def test_lines_of_answers_with_secrets_are_found(tmp_path: Path) -> None:
    """The search above does find what is there."""
    lines(tmp_path / "a.jsonl", [{"key": SECRETS["HF_TOKEN"]}])
    assert files_with(tmp_path, SECRETS["HF_TOKEN"]) == [str(tmp_path / "a.jsonl")]

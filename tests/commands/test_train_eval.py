"""``mmalign train --eval-benchmarks``: the same training, scores in its log, answers a step, resume, two processes, refusals."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.cli import main
from tests.data_files import chat_rows, save_rows, scored_rows
from tests.tiny_models import WORDS, random_image

LENGTH = 6


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE and CHAIR questions in one folder; the objects are words that the random model says."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "images").mkdir()
    for i in range(3):
        random_image(50 + i).save(folder / "images" / f"{i}.png")
    pope = [
        {"question_id": i + 1, "image": f"{i % 3}.png", "text": f"Is there a {WORDS[i]}?", "label": ("yes", "no")[i % 2]} for i in range(6)
    ]
    chair = [{"id": str(i), "image": f"{i}.png", "question": "describe", "truth": ["dog", WORDS[i]]} for i in range(3)]
    for name, rows in (("pope_random.jsonl", pope), ("chair.jsonl", chair)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "synonyms.txt").write_text("\n".join(dict.fromkeys(WORDS)) + "\n")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_llava_dir: Path) -> Path:
    return save_rows(tmp_path_factory.mktemp("pairs") / "pairs.parquet", scored_rows(8, reference=tiny_llava_dir))


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    words = ["--model", str(model), "--data", str(data), "--out", str(out), "--batch-size", "2", "--learning-rate", "1e-2"]
    words += ["--max-steps", "5", "--save-steps", "2", "--save-total-limit", "9", "--logging-steps", "1", "--schedule", "constant"]
    return ["train", "preference", *words, "--lora-rank", "4", "--lora-dropout", "0.3", *more]


def scoring(bench: Path) -> list[str]:
    short = f"{{pope: {{max_new_tokens: {LENGTH}}}, chair: {{max-new-tokens: {LENGTH}}}}}"
    return ["--eval-benchmarks", "pope", "chair", "--eval-data", str(bench), "--eval-every", "2", "--eval-options", short]


def read_log(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "train_log.json").read_text())


def with_key(out: Path, key: str) -> list[dict[str, Any]]:
    return [entry for entry in read_log(out) if key in entry]


def test_training_is_the_same_and_its_log_has_the_scores(
    tiny_llava_dir: Path, pairs: Path, bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, scored = tmp_path / "plain", tmp_path / "scored"
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tiny_llava_dir.iterdir())
    assert main(command(tiny_llava_dir, pairs, plain)) == 0
    assert main(command(tiny_llava_dir, pairs, scored, *scoring(bench))) == 0
    assert sorted((path.name, path.stat().st_mtime_ns) for path in tiny_llava_dir.iterdir()) == before
    weights, expected = (load_file(folder / "adapter_model.safetensors") for folder in (scored, plain))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert with_key(scored, "loss") == with_key(plain, "loss")

    entries = with_key(scored, "eval/pope/f1")
    assert [entry["step"] for entry in entries] == [2, 4, 5]
    assert not any("always" in key for entry in entries for key in entry)
    for entry in entries:
        folder = scored / "eval" / f"step-{entry['step']}"
        for benchmark in ("pope", "chair"):
            result = json.loads((folder / f"{benchmark}.json").read_text())
            assert result["model"] == f"{scored}, step {entry['step']}"
            logged = {key.removeprefix("eval/"): value for key, value in entry.items() if key.startswith(f"eval/{benchmark}/")}
            assert logged == {key: value for key, value in result["metrics"].items() if "/always_" not in key}

    # What a checkpoint's own answers are, read from disk by the evaluate command, is what was answered from memory.
    for step in (2, 5):
        words = ["evaluate", "chair", "--model", str(scored / "checkpoints" / f"checkpoint-{step}"), "--data", str(bench)]
        shutil.copy(scored / "processor_config.json", words[3])
        for path in scored.glob("*token*"):
            shutil.copy(path, words[3])
        shutil.copy(scored / "chat_template.jinja", words[3])
        assert main([*words, "--out", str(tmp_path / f"disk-{step}"), "--max-new-tokens", str(LENGTH)]) == 0
        answers = [(folder / "chair_answers.jsonl").read_text() for folder in (tmp_path / f"disk-{step}", scored / "eval" / f"step-{step}")]
        assert answers[0] == answers[1]
    texts = {(scored / "eval" / f"step-{step}" / "chair_answers.jsonl").read_text() for step in (2, 4, 5)}
    assert len(texts) > 1, "the answers never changed: nothing would show that they are of their step"

    capsys.readouterr()
    folders = [str(scored / "eval" / f"step-{step}") for step in (2, 5)]
    assert main(["report", "eval", *folders, "--out", str(tmp_path / "report")]) == 0
    assert "step-5" in (tmp_path / "report" / "report.md").read_text()


def test_resumed_run_logs_the_same(tiny_llava_dir: Path, pairs: Path, bench: Path, tmp_path: Path) -> None:
    """Killed after step 4 was scored, before its checkpoint was whole, with half of step 5's answers written."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(command(tiny_llava_dir, pairs, whole, *scoring(bench))) == 0
    shutil.copytree(whole, stopped)
    record = json.loads((stopped / "mmalign_run.json").read_text())
    record["options"]["out"] = str(stopped)
    (stopped / "mmalign_run.json").write_text(json.dumps(record))
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-5")
    (stopped / "checkpoints" / "checkpoint-4" / "manifest.json").unlink()
    for name in ("adapter_model.safetensors", "train_log.json", "README.md", "eval/step-5/pope_answers.jsonl"):
        (stopped / name).unlink()
    row = {"id": "random/1", "image": "0.png", "prompt": "", "response": "of other weights"}
    (stopped / "eval" / "step-5" / "pope_answers.jsonl.partial").write_text(json.dumps(row) + "\n")
    assert main(command(tiny_llava_dir, pairs, stopped, *scoring(bench))) == 0
    for key in ("loss", "eval/pope/f1"):
        assert with_key(stopped, key) == with_key(whole, key)
    for name in ("pope_answers.jsonl", "chair_answers.jsonl"):
        assert (stopped / "eval" / "step-5" / name).read_text() == (whole / "eval" / "step-5" / name).read_text()


@pytest.mark.slow
def test_main_process_scores_for_all(tiny_llava_dir: Path, bench: Path, tmp_path: Path) -> None:
    """Two processes end in the weights of two that don't score, and the answers are written once."""
    chats = save_rows(tmp_path / "chats.parquet", chat_rows(8))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmalign", "train", "sft"]
    for name, more in (("plain", []), ("scored", scoring(bench))):
        words = ["--model", str(tiny_llava_dir), "--data", str(chats), "--out", str(tmp_path / name), "--batch-size", "2"]
        words += ["--max-steps", "3", "--logging-steps", "1", "--config", str(tmp_path / "config.yaml"), *more]
        (tmp_path / "config.yaml").write_text("trainer: {use_cpu: true, ddp_find_unused_parameters: true}\n")
        done = subprocess.run([*launch, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("scored", "plain"))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert [entry["step"] for entry in with_key(tmp_path / "scored", "eval/pope/f1")] == [2, 3]
    assert len((tmp_path / "scored" / "eval" / "step-3" / "pope_answers.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eval-data", "BENCH"], "--eval-benchmarks is empty; name there what --eval-data and --eval-options are for"),
        (["--eval-benchmarks", "pope"], "--eval-data 0 folders; expected each benchmark once, and one folder for all or one for each"),
        (["--eval-benchmarks", "pope", "pope", "--eval-data", "BENCH"], "expected each benchmark once"),
        (["--eval-benchmarks", "pope", "--eval-data", "BENCH", "--eval-every", "0"], "--eval-every is 0; expected 1 step or more"),
        (
            ["--eval-benchmarks", "pope", "--eval-data", "BENCH", "--eval-options", "{pope: {max_new_token: 4}}"],
            "eval_options.pope has no option 'max_new_token'; known: ",
        ),
        (
            ["--eval-benchmarks", "pope", "--eval-data", "BENCH", "--eval-options", "{pope: {max_new_tokens: many}}"],
            "eval_options.pope.max_new_tokens is 'many'; expected int",
        ),
        (["--eval-benchmarks", "pope", "--eval-data", "BENCH", "--eval-options", "{chair: {}}"], "--eval-benchmarks is pope; name there"),
        (["--eval-benchmarks", "pope", "--eval-data", "nowhere"], "no POPE questions at nowhere"),
        (["--eval-benchmarks", "pope", "--eval-data", "BENCH", "--eval-options", "{pope: {images: nowhere}}"], "no images at nowhere"),
        (["--eval-benchmarks", "mmhal", "--eval-data", "BENCH"], "mmhal needs a judge: --judge-url"),
    ],
)
def test_refused_before_the_first_step(
    tiny_llava_dir: Path,
    pairs: Path,
    bench: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    """And before the folder is claimed: the corrected command can have it."""
    row = {"question_type": "attribute", "image_id": "1", "image_src": "", "image_content": [], "question": "?", "gt_answer": "A dog."}
    (bench / "mmhal.json").write_text(json.dumps([row]))
    words = [str(bench) if word == "BENCH" else word for word in words]
    assert main(command(tiny_llava_dir, pairs, tmp_path / "out", *words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""The recipe's smoke size runs all stages by its own shell file, and does what each stage says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmalign.models.load import load_mllm

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", "a", "--llm", "b"], "--captions is missing"),
        (["--pairs", "--smoke"], "--pairs needs a value"),
        (["--teacher-llm", "a", "--captions", "b"], "--instructions is missing, from which the teacher is made"),
        (["--tutor", "a"], "unknown option --tutor"),
    ],
)
def test_what_the_recipe_refuses(words: list[str], message: str) -> None:
    done = subprocess.run(["scripts/llava_mod/run.sh", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_smoke_size(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["scripts/llava_mod/run.sh", "--smoke", "--out", str(tmp_path / "run")]
    for attempt in (1, 2):
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("preference is done" in done.stdout) == (attempt == 2)
        if attempt == 1:
            assert "rewards before the first step, on 24 pairs" in done.stdout
    run = tmp_path / "run"
    models = ("teacher/start", "teacher/init", "teacher/teacher", "student", "init", "d2d", "sparse", "d2s", "preference")
    weights = {name: dict(load_mllm(str(run / name))[0].named_parameters()) for name in models}
    # The teacher is made first, by LLaVA-1.5's two trainings, from chats that were LLaVA's JSON.
    assert json.loads((run / "chats" / "conversion.json").read_text())["counts"]["rejected"] == 0
    trainings = [("teacher/start", "teacher/init"), ("teacher/init", "teacher/teacher"), ("student", "init"), ("init", "d2d")]
    for start, end in (*trainings, ("sparse", "d2s"), ("d2s", "preference")):
        moved = {name for name, value in weights[end].items() if not torch.equal(value, weights[start][name])}
        assert moved, end
        assert not any("vision_tower" in name for name in moved), end
        if end.endswith("init"):
            assert all("projector" in name for name in moved)
        elif end not in ("d2d", "teacher/teacher"):
            assert any("experts" in name for name in moved)
            assert all(".mlp." in name or "projector" in name for name in moved)
    log = json.loads((run / "d2s" / "train_log.json").read_text())[0]
    assert {"loss/kl", "loss/nll", "router/balance"} <= set(log)
    assert "loss/nll" not in json.loads((run / "d2d" / "train_log.json").read_text())[0]

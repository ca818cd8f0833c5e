"""Pipelines of diffusers in and out: what they are known by, and where they come from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.denoisers.pipeline import fingerprint_pipeline
from tests.tiny_pipelines import build_latent_pipeline, save_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(build_latent_pipeline(), tmp_path_factory.mktemp("pipeline") / "latent")


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("tokenizer/merges.txt", "tokenizer"),
        ("tokenizer/spiece.model", "tokenizer"),
        ("tokenizer/tokenizer.json", "tokenizer"),
        ("scheduler/scheduler_config.json", "scheduler"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("unet/diffusion_pytorch_model.safetensors", "unet"),
        ("model_index.json", "model_index.json"),
        # Nothing that is read.
        ("unet/diffusion_pytorch_model.bin", None),
        ("README.md", None),
        ("checkpoints/checkpoint-1/model.safetensors", None),
    ],
)
def test_a_changed_part_changes_its_fingerprint_and_no_other(saved: Path, tmp_path: Path, file: str, part: str | None) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(saved, folder)
    before = fingerprint_pipeline(str(folder))
    assert set(before) == {"model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"}
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    with (folder / file).open("ab") as opened:
        opened.write(b"\n")
    after = fingerprint_pipeline(str(folder))
    assert {name for name in after if after[name] != before[name]} == ({part} if part else set())


def test_a_hub_id_is_known_by_the_files_that_are_fetched(saved: Path, tmp_path: Path) -> None:
    """As the hub's cache keeps them: another revision is another pipeline."""
    kept = tmp_path / "models--org--name"
    for revision in ("a" * 40, "b" * 40):
        shutil.copytree(saved, kept / "snapshots" / revision)
    (kept / "snapshots" / ("b" * 40) / "tokenizer" / "merges.txt").write_text("a b\n")
    (kept / "refs").mkdir()
    code = "from mmalign.denoisers.pipeline import *; print(fingerprint_pipeline('org/name')); load_pipeline('org/name')"
    found = []
    for revision in ("a" * 40, "b" * 40):
        (kept / "refs" / "main").write_text(revision)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(done.stdout.strip())
    assert found[0] == str(fingerprint_pipeline(str(saved)))
    assert found[1] != found[0]

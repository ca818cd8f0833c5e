"""In what precision weights are held that train, and how far small steps move them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.methods.policy import load_policy
from mmalign.models import load
from mmalign.options.methods import SftOptions
from tests.commands.training import read_log, train

WHOLE, HALF = {torch.float32}, {torch.bfloat16}


@pytest.mark.parametrize(
    ("form", "trains", "frozen"),
    [
        ({}, WHOLE, set()),
        ({"freeze": ["vision_tower"]}, WHOLE, WHOLE),
        ({"lora_rank": 4}, WHOLE, HALF),
        ({"lora_rank": 4, "train_projector": True}, WHOLE, HALF),
        ({"dtype": "bfloat16"}, HALF, set()),
    ],
)
def test_what_trains_on_an_accelerator_is_in_float32(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any], trains: set[torch.dtype], frozen: set[torch.dtype]
) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr(load, "best_device", lambda: torch.device("cpu"))
    policy, _ = load_policy(SftOptions(model=str(tiny_llava_dir), data=[Path("chats")], out=Path("out"), **form))
    assert {weight.dtype for weight in policy.parameters() if weight.requires_grad} == trains
    assert {weight.dtype for weight in policy.parameters() if not weight.requires_grad} == frozen


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_projector_beside_an_adapter_moves_by_small_steps(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, precision: str) -> None:
    """A model in bfloat16 with and without autocast; the projector's first step of AdamW is the learning rate."""
    words = ["--dtype", "bfloat16", "--precision", precision, "--lora-rank", "4", "--train-projector", "--learning-rate", "2e-6"]
    assert train(tiny_llava_dir, pairs, tmp_path / "out", *words) == 0
    assert read_log(tmp_path / "out")[0]["rewards/margin"] == pytest.approx(0, abs=2e-3)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    start = load.load_mllm(str(tiny_llava_dir), dtype="bfloat16")[0].state_dict()
    moved = torch.cat([(value - start[name.split(".", 2)[2]]).flatten() for name, value in saved.items() if "projector" in name])
    assert (moved != 0).float().mean() > 0.9
    assert moved.abs().max() < 1e-5


@pytest.mark.gpu
def test_full_weights_move_by_small_steps_on_a_gpu(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    assert train(tiny_llava_dir, pairs, tmp_path / "out", "--learning-rate", "2e-6") == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_llava_dir, tmp_path / "out"))
    assert all(value.dtype == torch.float32 for value in after.values())
    assert torch.cat([(value != after[name]).flatten() for name, value in before.items()]).float().mean() > 0.5

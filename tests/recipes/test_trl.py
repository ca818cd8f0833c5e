"""Our first step of DPO against TRL's: the same model, pairs and reference give the same loss and rewards."""

import json
import math
from pathlib import Path

import pytest
from datasets import Image as ImageFeature
from datasets import List

from mmalign.data.datasets import load_rows
from mmalign.methods.preference import PreferenceConfig, PreferenceMethod
from mmalign.models.references import Reference
from mmalign.training.arguments import build_training_arguments
from mmalign.training.config import TrainConfig
from mmalign.training.trainer import MethodTrainer
from tests.data_files import save_rows
from tests.tiny_models import build_tiny_llava, pair_rows

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[benchmark]'")
NUM_PAIRS = 4


def test_first_step_equals_trl(tmp_path: Path) -> None:
    """Policy and reference are different random models, so that the loss is far from log 2."""
    data = save_rows(tmp_path / "pairs.parquet", pair_rows(NUM_PAIRS))
    common = {"learning_rate": 1e-6, "logging_steps": 1, "max_steps": 1, "report_to": "none", "save_strategy": "no"}

    policy, processor = build_tiny_llava(seed=0)
    reference, _ = build_tiny_llava(seed=1)
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=NUM_PAIRS, max_length=None, bf16=False, use_cpu=True,
        gradient_checkpointing=False, beta=0.1, disable_tqdm=True, dataloader_pin_memory=False, **common,
    )  # fmt: skip
    theirs = load_rows(data).cast_column("images", List(ImageFeature())).remove_columns("id")
    peer = trl.DPOTrainer(model=policy, ref_model=reference, args=arguments, train_dataset=theirs, processing_class=processor)
    peer.train()

    policy, processor = build_tiny_llava(seed=0)
    reference, _ = build_tiny_llava(seed=1)
    method = PreferenceMethod(processor, PreferenceConfig(beta=0.1), reference=Reference(policy, kind="copy", model=reference))
    config = TrainConfig(learning_rate=1e-6, batch_size=NUM_PAIRS, max_steps=1, logging_steps=1)
    arguments = build_training_arguments(config, output_dir=tmp_path / "ours")
    trainer = MethodTrainer(model=policy, args=arguments, train_dataset=method.prepare(load_rows(data)), method=method)
    trainer.train()

    expected, got = peer.state.log_history[0], trainer.state.log_history[0]
    assert abs(got["loss"] - math.log(2)) > 0.05, json.dumps(got)
    assert got["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    for ours, name in (
        ("rewards/chosen", "rewards/chosen"),
        ("rewards/rejected", "rewards/rejected"),
        ("rewards/margin", "rewards/margins"),
    ):
        assert got[ours] == pytest.approx(expected[name], abs=1e-3), ours

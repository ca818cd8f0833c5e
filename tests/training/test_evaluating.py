"""Evaluation during training: what it leaves as it was, and when it is done."""

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmalign.training.evaluating import EvaluationCallback, left_as_found
from tests.training.test_trainer import make_trainer


def seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_modes_and_generators_are_left_as_found() -> None:
    """Also where scoring fails, changes modes or draws numbers."""
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))).train()
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    assert before == [True, True, True, False, True]

    def fail() -> None:
        with left_as_found(model):
            assert not any(module.training for module in model.modules())
            draw()
            model.train()
            raise KeyError

    seed()
    expected = draw()
    seed()
    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == before
    assert draw() == expected


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (9, [4])])
def test_scores_every_so_many_steps_and_at_the_end(tmp_path: Path, every: int, expected: list[int]) -> None:
    """The log holds each step's scores before the checkpoint of the step, and loses no loss."""
    trainer = make_trainer(tmp_path, kind="sft", batch_size=2)
    scored = []

    def score(model: nn.Module, step: int) -> Mapping[str, float]:
        assert model is trainer.model
        assert not model.training
        assert not (tmp_path / f"checkpoint-{step}").exists()
        scored.append(step)
        return {"eval/x": float(step)}

    trainer.add_callback(EvaluationCallback(score, every=every, log=trainer.log))
    trainer.train()
    assert scored == expected
    history = trainer.state.log_history
    assert [(entry["step"], entry["eval/x"]) for entry in history if "eval/x" in entry] == [(step, float(step)) for step in expected]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]

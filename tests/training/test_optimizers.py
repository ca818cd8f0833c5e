"""Muon for matrices, AdamW for the rest, one learning rate for both."""

import dataclasses

import pytest
import torch

from mmalign.options.training import TrainerOptions
from mmalign.training.optimizers import build_optimizer
from tests.tiny_models import build_tiny_llava

CONFIG = TrainerOptions(learning_rate=0.01, optimizer="muon", weight_decay=0.0)


def test_groups_hold_every_weight_once_and_muon_has_the_matrices() -> None:
    model, _ = build_tiny_llava()
    optimizer = build_optimizer(model, CONFIG)
    assert optimizer is not None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, rest = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert not matrices & rest
    assert matrices | rest == set(names.values())
    assert all(name.endswith("weight") and "norm" not in name and "embed" not in name for name in matrices)
    assert any("q_proj" in name for name in matrices)
    assert any("embed_tokens" in name for name in rest)
    assert any("patch_embedding" in name for name in rest)


def test_a_matrix_steps_in_all_directions_alike() -> None:
    """After one step the change of a matrix has equal singular values, of the size that AdamW's steps have."""
    model, _ = build_tiny_llava()
    optimizer = build_optimizer(model, CONFIG)
    assert optimizer is not None
    weight = model.get_parameter("model.multi_modal_projector.linear_2.weight")
    before = weight.detach().clone()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    change = before - weight.detach()
    singular = torch.linalg.svdvals(change)
    # Five Newton-Schulz steps bring singular values to about 1, not to 1.
    assert singular.max() / singular.median() < 2
    assert singular.max() / singular[-len(singular) // 8] < 4
    # AdamW's first step is the learning rate in every entry; Muon's is scaled to 0.2 of it in root mean square.
    assert change.square().mean().sqrt().item() == pytest.approx(0.2 * CONFIG.learning_rate, rel=0.3)


def test_frozen_weights_are_left_out_and_adamw_is_the_trainers() -> None:
    model, _ = build_tiny_llava()
    model.model.vision_tower.requires_grad_(False)
    optimizer = build_optimizer(model, CONFIG)
    assert optimizer is not None
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in model.model.vision_tower.parameters()}
    assert build_optimizer(model, dataclasses.replace(CONFIG, optimizer="adamw")) is None

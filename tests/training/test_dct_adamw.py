"""DCT-AdamW: basis and choice by hand, AdamW where it must be, steps against a second derivation, states and resume."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmalign.errors import UserError
from mmalign.options.methods import SftOptions
from mmalign.options.training import TrainerOptions
from mmalign.runs.training import refuse_sharded
from mmalign.training.dct_adamw import DctAdamW, cosine_columns, dct, is_low_rank, largest_columns
from mmalign.training.optimizers import build_optimizer
from tests.tiny_models import build_tiny_llava

F64 = torch.float64


def full_basis(size: int) -> Tensor:
    """Q[i, k] = c_k cos(pi (2 i + 1) k / 2 n), entry by entry."""
    return torch.tensor(
        [
            [(math.sqrt((1 if k == 0 else 2) / size)) * math.cos(math.pi * (2 * i + 1) * k / (2 * size)) for k in range(size)]
            for i in range(size)
        ],
        dtype=F64,
    )


@pytest.mark.parametrize("size", [1, 2, 7, 8, 96])
def test_the_basis_is_orthonormal_and_the_transform_is_its_product(size: int) -> None:
    basis = cosine_columns(size, torch.arange(size), dtype=F64)
    torch.testing.assert_close(basis, full_basis(size), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.T @ basis, torch.eye(size, dtype=F64), rtol=0, atol=1e-12)
    torch.manual_seed(0)
    values = torch.randn(5, size, dtype=F64)
    torch.testing.assert_close(dct(values), values @ basis, rtol=0, atol=1e-12)


def test_the_planted_column_is_found() -> None:
    """G = u q_3^T with u = (1, -2, .5): column 3 has l1 norm 3.5, the others none."""
    gradient = torch.tensor([[1.0], [-2.0], [0.5]], dtype=F64) @ full_basis(8)[:, 3:4].T
    norms = dct(gradient).abs().sum(0)
    assert largest_columns(dct(gradient), 1).tolist() == [3]
    assert norms[3].item() == pytest.approx(3.5, abs=1e-12)
    assert norms[[0, 1, 2, 4, 5, 6, 7]].max() < 1e-12


def gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def run(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, grads: list[Tensor]) -> Tensor:
    for gradient in grads:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(7,), (6, 4), (4, 6), (3, 4, 2)])
def test_at_full_rank_it_is_adamw(shape: tuple[int, ...]) -> None:
    start, grads = torch.linspace(-1, 1, math.prod(shape)).view(shape), gradients(shape, 5)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options: dict[str, Any] = {"betas": (0.8, 0.95), "weight_decay": 0.1}
    got = run(DctAdamW([mine], 0.01, rank=4, **options), mine, grads)
    expected = run(torch.optim.AdamW([theirs], 0.01, **options), theirs, grads)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wide", [False, True])
def test_in_a_subspace_that_stays_it_is_adamw_in_the_cosine_basis(wide: bool) -> None:
    """Gradients that lie in three columns: train W Q by torch's AdamW with the gradients G Q, and turn back."""
    columns, basis = torch.tensor([0, 2, 5]), full_basis(6).float()
    inner = gradients((9, 3), 6)
    grads = [g @ basis[:, columns].T for g in inner]
    start = torch.linspace(-1, 1, 54).view(9, 6)
    mine = nn.Parameter((start.T if wide else start).clone())
    got = run(DctAdamW([mine], 0.01, rank=3), mine, [g.T if wide else g for g in grads])
    rotated = nn.Parameter(start @ basis)
    padded = [torch.zeros(9, 6).index_copy(1, columns, g) for g in inner]
    expected = run(torch.optim.AdamW([rotated], 0.01, weight_decay=0.0), rotated, padded) @ basis.T
    torch.testing.assert_close(got.T if wide else got, expected, rtol=0, atol=1e-5)


def by_the_formulas(start: Tensor, grads: list[Tensor], rank: int, *, feedback: bool) -> Tensor:
    """The paper's algorithm with dense matrices in float64: moments rotated by Q[:, old]^T Q[:, new]."""
    weight, basis = start.double(), full_basis(start.shape[1])
    first = second = error = old = None
    for step, gradient in enumerate(grads, start=1):
        whole = gradient.double() + (error if feedback and error is not None else 0)
        transformed = whole @ basis
        new = transformed.abs().sum(0).argsort(descending=True)[:rank]
        kept = transformed[:, new]
        if old is None:
            first, second = torch.zeros_like(kept), torch.zeros_like(kept)
        else:
            rotation = basis[:, old].T @ basis[:, new]
            first, second = first @ rotation, (second @ rotation).abs()
        first, second = 0.9 * first + 0.1 * kept, 0.999 * second + 0.001 * kept**2
        error = whole - kept @ basis[:, new].T
        change = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        weight = weight - 0.01 * change @ basis[:, new].T
        old = new
    return weight


@pytest.mark.parametrize("feedback", [False, True])
def test_steps_are_the_formulas(feedback: bool) -> None:
    """Columns change from step to step here, and what is new starts from zero."""
    start, grads = torch.linspace(-1, 1, 80).view(10, 8), gradients((10, 8), 8)
    parameter = nn.Parameter(start.clone())
    got = run(DctAdamW([parameter], 0.01, rank=3, error_feedback=feedback), parameter, grads)
    # Where a rotated second moment is rounding noise in the dense form, it is exactly zero here: a column that is new has it from
    # its own gradient alone.
    torch.testing.assert_close(got.double(), by_the_formulas(start, grads, 3, feedback=feedback), rtol=0, atol=1e-4)


def test_feedback_gives_back_all_that_was_left_out() -> None:
    """Kept parts and the rest add up to the sum of the gradients."""
    grads = gradients((10, 8), 6)
    parameter = nn.Parameter(torch.zeros(10, 8))
    optimizer = DctAdamW([parameter], 0.01, rank=2, error_feedback=True)
    total, before = torch.zeros(10, 8), torch.zeros(10, 8)
    for gradient in grads:
        run(optimizer, parameter, [gradient])
        left = optimizer.state[parameter]["left_out"]
        total += before + gradient - left
        before = left.clone()
    torch.testing.assert_close(total + before, torch.stack(grads).sum(0), rtol=0, atol=1e-5)


def test_states_are_as_small_as_they_should_be() -> None:
    """2 M R numbers and a mask of N, not 2 M N."""
    parameter = nn.Parameter(torch.zeros(50, 40))
    optimizer = DctAdamW([parameter], 0.01, rank=4)
    run(optimizer, parameter, gradients((50, 40), 2))
    sizes = {name: value.numel() for name, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
    assert sizes == {"exp_avg": 200, "exp_avg_sq": 200, "kept": 40}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_same(dtype: torch.dtype) -> None:
    grads = [g.to(dtype) for g in gradients((10, 8), 6)]
    whole = nn.Parameter(torch.ones(10, 8, dtype=dtype))
    expected = run(DctAdamW([whole], 0.01, rank=3), whole, grads)
    first = nn.Parameter(torch.ones(10, 8, dtype=dtype))
    optimizer = DctAdamW([first], 0.01, rank=3)
    run(optimizer, first, grads[:3])
    second = nn.Parameter(first.detach().clone())
    resumed = DctAdamW([second], 0.01, rank=3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(run(resumed, second, grads[3:]), expected)


def test_the_option_builds_it_for_every_weight() -> None:
    model, _ = build_tiny_llava()
    optimizer = build_optimizer(model, TrainerOptions(learning_rate=0.01, optimizer="dct-adamw", dct_rank=8, weight_decay=0.1))
    assert isinstance(optimizer, DctAdamW)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert is_low_rank(model.get_parameter("model.multi_modal_projector.linear_2.weight"), 8)
    assert not is_low_rank(torch.zeros(40_000, 64), 8)
    assert not is_low_rank(torch.zeros(64), 8)
    with pytest.raises(ValueError, match="rank is 0"):
        build_optimizer(model, TrainerOptions(learning_rate=0.01, optimizer="dct-adamw", dct_rank=0))
    for options in ({"dct_rank": 8}, {"dct_error_feedback": True}):
        with pytest.raises(ValueError, match="which only --optimizer dct-adamw reads"):
            TrainerOptions(learning_rate=0.01, **options)


def test_sharded_weights_are_refused() -> None:
    """FSDP and DeepSpeed hold parts of matrices, of which there is no whole transform."""
    options = SftOptions(model="model", data=Path("data"), out=Path("out"), optimizer="dct-adamw")
    with pytest.raises(UserError, match="--optimizer dct-adamw transforms whole matrices; with FSDP or DeepSpeed leave it out"):
        refuse_sharded(options, nn.Linear(2, 2))

"""Numbers of 64 bits on a device that has none: what is computed apart from a method's step (tests/engine/test_devices.py has those)."""

import torch

from mmalign.losses.doubles import to_double, widest_dtype
from mmalign.losses.kernel_ridge import kernel_ridge_error
from mmalign.methods.pictures import drawn_shares
from mmalign.training.chasing import Chase
from mmalign.training.dct_adamw import cosine_columns
from tests.pretend_device import CPU, CUDA, MPS, move, pretending


def test_the_widest_numbers_of_a_device() -> None:
    assert [widest_dtype(device) for device in (CPU, CUDA, MPS)] == [torch.float64, torch.float64, torch.float32]
    with pretending(MPS):
        assert to_double(move(torch.ones(2))).device == CPU
    with pretending(CUDA):
        assert to_double(move(torch.ones(2))).device == CUDA


def test_what_is_summed_of_two_adapters_needs_no_doubles() -> None:
    chase = Chase(steps=1)
    with pretending(MPS):
        chase.watch(move(torch.tensor(2.0)), move(torch.tensor(1.0)))
        chase.step(1)
    assert chase.num_changes == 1


def test_a_cosine_basis_is_as_exact_in_float32() -> None:
    columns = torch.tensor([0, 1, 777, 4095])
    expected = cosine_columns(4096, columns)
    with pretending(MPS):
        found = cosine_columns(4096, move(columns))
        assert found.device == MPS
        assert torch.allclose(found.cpu(), expected, atol=1e-8)


def test_a_kernel_is_solved_and_shares_are_drawn_on_the_cpu() -> None:
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    seeds = torch.tensor([2**62 + 12345, 99])
    expected, shares = kernel_ridge_error(features, features, features, features), drawn_shares(seeds)
    with pretending(MPS):
        there = move(features)
        assert torch.equal(kernel_ridge_error(there, there, there, there), expected)
        assert torch.equal(drawn_shares(move(seeds)), shares)

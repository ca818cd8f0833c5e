"""Router losses: worked by hand, against the library's, by gradient, identity, padding and a batch of padding alone."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mmalign.losses.router import compute_expert_load, compute_router_entropy, load_balancing_loss, router_z_loss

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "balance": lambda logits, counted: load_balancing_loss(logits, counted, top_k=2),
    "z": router_z_loss,
    "entropy": compute_router_entropy,
}
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def draw(layers: int = 3, tokens: int = 7, experts: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(layers, tokens, experts, generator=torch.Generator().manual_seed(seed))


def all_of(logits: Tensor) -> Tensor:
    return torch.ones(logits.shape[1], dtype=torch.bool)


def test_balance_by_hand() -> None:
    # Two tokens with probabilities (1/2, 1/4, 1/4) and (1/8, 5/8, 1/4): top-1 loads (1/2, 1/2, 0), means (5/16, 7/16, 1/4).
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.625, 0.25]]]).log()
    assert load_balancing_loss(logits, all_of(logits), top_k=1).item() == pytest.approx(3 * (0.5 * 5 / 16 + 0.5 * 7 / 16))


def test_z_by_hand() -> None:
    # Sums of exponentials e and e^3: squares of the logarithms 1 and 9.
    logits = torch.tensor([[[1 - math.log(2)] * 2, [3 - math.log(2)] * 2]])
    assert router_z_loss(logits, all_of(logits)).item() == pytest.approx(5.0)


def test_entropy_and_load_by_hand() -> None:
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.7, 0.3, 1e-30]]]).log()
    entropy = (1.5 * math.log(2) - 0.7 * math.log(0.7) - 0.3 * math.log(0.3)) / 2
    assert compute_router_entropy(logits, all_of(logits)).item() == pytest.approx(entropy)
    assert compute_expert_load(logits, all_of(logits), top_k=1).tolist() == [[1.0, 0.0, 0.0]]
    assert compute_expert_load(logits, all_of(logits), top_k=3)[0].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_one_layer_equals_the_librarys_over_top_k(top_k: int) -> None:
    logits = draw(layers=1)
    counted = torch.tensor([True, True, False, True, True, False, True])
    expected = load_balancing_loss_func((logits[0],), num_experts=4, top_k=top_k, attention_mask=counted[None].long())
    assert load_balancing_loss(logits, counted, top_k=top_k).item() == pytest.approx(float(expected) / top_k, rel=1e-6)


def test_z_equals_the_naive_formula() -> None:
    logits = draw()
    expected = logits.exp().sum(-1).log().pow(2).mean(-1)
    torch.testing.assert_close(router_z_loss(logits, all_of(logits)), expected)


def test_entropy_equals_torch_distributions() -> None:
    logits = draw()
    expected = torch.distributions.Categorical(logits=logits).entropy().mean(-1)
    torch.testing.assert_close(compute_router_entropy(logits, all_of(logits)), expected)


@EVERY
def test_gradients_equal_finite_differences(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = draw().double().requires_grad_(True)
    counted = torch.tensor([True] * 5 + [False, True])
    assert torch.autograd.gradcheck(lambda x: loss(x, counted), (logits,))


def test_identities() -> None:
    equal = torch.zeros(2, 8, 4)
    # Undecided routers: probabilities are 1/E, so the loss is 1 whatever ties give the loads.
    torch.testing.assert_close(load_balancing_loss(equal, all_of(equal), top_k=2), torch.ones(2))
    torch.testing.assert_close(compute_router_entropy(equal, all_of(equal)), torch.full((2,), math.log(4)))
    torch.testing.assert_close(router_z_loss(equal.log_softmax(-1), all_of(equal)), torch.zeros(2))
    logits, order = draw(), torch.tensor([2, 0, 3, 1])
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(logits[..., order], all_of(logits)), loss(logits, all_of(logits)))
        torch.testing.assert_close(loss(logits.flip(0), all_of(logits)), loss(logits, all_of(logits)).flip(0))


@EVERY
def test_padding_changes_nothing_and_gets_no_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = draw()
    padded = torch.cat([logits, torch.full((3, 2, 4), float("nan"))], 1).requires_grad_(True)
    counted = torch.tensor([True] * 7 + [False] * 2)
    value = loss(padded, counted)
    torch.testing.assert_close(value, loss(logits, all_of(logits)))
    value.sum().backward()
    assert padded.grad is not None
    assert not padded.grad[:, 7:].any()
    assert padded.grad[:, :7].any()


@EVERY
def test_a_batch_of_padding_alone_is_zero_with_a_zero_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = draw().requires_grad_(True)
    value = loss(logits, torch.zeros(7, dtype=torch.bool))
    assert value.tolist() == [0.0] * 3
    value.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_layers_collapsed_on_different_experts_are_seen() -> None:
    """Two layers that send all tokens to experts {0, 1} and {2, 3}: pooled over layers they look balanced."""
    collapsed = torch.full((2, 6, 4), -30.0)
    collapsed[0, :, :2], collapsed[1, :, 2:] = 30.0, 30.0
    pooled = load_balancing_loss_func(tuple(collapsed), num_experts=4, top_k=2)
    assert float(pooled) == pytest.approx(2.0), "the library's value at perfect balance"
    torch.testing.assert_close(load_balancing_loss(collapsed, all_of(collapsed), top_k=2), torch.full((2,), 2.0))
    assert compute_expert_load(collapsed, all_of(collapsed), top_k=2).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]


def test_gradient_moves_probability_to_idle_experts() -> None:
    logits = torch.tensor([[[1.0, 0.5, 0.0, -0.5]] * 6]).requires_grad_(True)
    load_balancing_loss(logits, all_of(logits), top_k=2).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[..., :2] > 0).all()
    assert (logits.grad[..., 2:] < 0).all()


def test_shapes_and_top_k_are_checked() -> None:
    logits = draw()
    with pytest.raises(ValueError, match=r"router_logits are \(3, 7, 4\) and counted is \(6,\); expected \(layers, tokens, experts\)"):
        router_z_loss(logits, all_of(logits)[:6])
    with pytest.raises(ValueError, match=r"top_k is 5; expected 1 to the number of experts \(4\)"):
        load_balancing_loss(logits, all_of(logits), top_k=5)

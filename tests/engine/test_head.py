"""The chunked head: against log_softmax, gradcheck, chunk sizes."""

import pytest
import torch

from mmalign.engine import head
from mmalign.engine.head import linear_token_logps


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((7, 5), (11, 5), (11,)))
    return hidden, weight, bias, torch.randint(11, (7,), generator=generator)


def test_hand_worked_value() -> None:
    # logits = [0, ln 3]: p = [1/4, 3/4]
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]]).log().nan_to_num(neginf=0.0)
    got = linear_token_logps(hidden.repeat(2, 1), weight, None, torch.tensor([0, 1]))
    torch.testing.assert_close(got, torch.tensor([0.25, 0.75]).log())


@pytest.mark.parametrize("rows_a_chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_log_softmax_with_gradients(monkeypatch: pytest.MonkeyPatch, rows_a_chunk: int, with_bias: bool) -> None:
    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", 11 * rows_a_chunk)
    hidden, weight, bias, target = inputs()
    leaves = [t.requires_grad_() for t in ((hidden, weight, bias) if with_bias else (hidden, weight))]
    factor = torch.arange(1.0, 8)
    logits = hidden @ weight.t() + (bias if with_bias else 0)
    expected = torch.log_softmax(logits, -1).gather(-1, target[:, None]).squeeze(-1)
    got = linear_token_logps(hidden, weight, bias if with_bias else None, target)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad((got * factor).sum(), leaves), torch.autograd.grad((expected * factor).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_frozen_head_gets_no_gradient() -> None:
    hidden, weight, _, target = inputs()
    hidden.requires_grad_()
    linear_token_logps(hidden, weight, None, target).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


def test_softmax_is_float32_for_bfloat16_inputs() -> None:
    hidden, weight, bias, target = (t.bfloat16() if t.is_floating_point() else t for t in inputs())
    got = linear_token_logps(hidden, weight, bias, target)
    assert got.dtype == torch.float32
    expected = torch.log_softmax((hidden.float() @ weight.float().t() + bias.float()), -1).gather(-1, target[:, None]).squeeze(-1)
    # The matmul itself rounds to bfloat16, 8 bits of mantissa.
    torch.testing.assert_close(got, expected, rtol=0, atol=0.05)


def test_no_tokens() -> None:
    hidden, weight, _, _ = inputs()
    got = linear_token_logps(hidden[:0].requires_grad_(), weight.requires_grad_(), None, torch.zeros(0, dtype=torch.long))
    assert got.shape == (0,)
    got.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_autocast_multiplies_in_its_own_type() -> None:
    hidden, weight, _, target = inputs()
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_token_logps(hidden, weight, None, target)
    expected = torch.log_softmax((hidden.bfloat16() @ weight.bfloat16().t()).float(), -1).gather(-1, target[:, None]).squeeze(-1)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_softcap_equals_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", 11 * 3)
    hidden, weight, bias, target = inputs()
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    logits = 1.5 * torch.tanh((hidden @ weight.t() + bias) / 1.5)
    expected = torch.log_softmax(logits, -1).gather(-1, target[:, None]).squeeze(-1)
    got = linear_token_logps(hidden, weight, bias, target, softcap=1.5)
    torch.testing.assert_close(got, expected)
    factor = torch.arange(1.0, 8)
    for a, b in zip(torch.autograd.grad((got * factor).sum(), leaves), torch.autograd.grad((expected * factor).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

"""Divergence between a teacher's and a student's next-token distributions, from hidden states, chunk by chunk.

Shape legend: K = tokens, S and T = hidden widths of student and teacher, V = vocabulary that both share.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmalign.engine.head import MAX_CHUNK_LOGITS

DivergenceKind = Literal["forward", "reverse", "jensen-shannon"]
# Logits of both models, their log-probabilities and the gradient are held at once.
BUFFERS = 6


class Head(NamedTuple):
    """A linear output head."""

    weight: Tensor
    """(V, width) or longer: only the first V rows are used."""
    bias: Tensor | None = None
    """(V,) or longer."""


@dataclass(frozen=True)
class Divergence:
    """Which divergence of student q from teacher p, both softened by the temperature.

    forward: KL(p || q). reverse: KL(q || p). jensen-shannon: w KL(p || m) + (1 - w) KL(q || m) with m = w p + (1 - w) q, the
    generalised form of arXiv:2306.13649.
    """

    kind: DivergenceKind = "forward"
    temperature: float = 1.0
    teacher_share: float = 0.5
    """w of the Jensen-Shannon mixture."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one is out of its range.
        """
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a positive number")
        if not 0 < self.teacher_share < 1:
            raise ValueError(f"teacher_share is {self.teacher_share}; expected a number between 0 and 1, both excluded")


def linear_divergence(
    student_hidden: Tensor, student: Head, teacher_hidden: Tensor, teacher: Head, divergence: Divergence | None = None
) -> Tensor:
    """Compute each token's divergence without a [tokens, vocabulary] tensor beyond one chunk.

    The two vocabularies are cut to the shorter one: families pad their heads to different lengths, and the tokens are the same. The
    result is not multiplied by the square of the temperature.

    Args:
        student_hidden: (K, S), with gradient.
        student: Its head, with gradient.
        teacher_hidden: (K, T).
        teacher: Its head.
        divergence: Kind and temperature; forward KL if not given.

    Returns:
        (K,) float32, in nats. The teacher gets no gradient.

    Raises:
        ValueError: If student and teacher have different numbers of tokens.
    """
    if len(student_hidden) != len(teacher_hidden):
        raise ValueError(f"{len(student_hidden)} tokens of the student and {len(teacher_hidden)} of the teacher; expected as many")
    size = min(len(student.weight), len(teacher.weight))
    teacher = Head(teacher.weight[:size], None if teacher.bias is None else teacher.bias[:size])
    # Cut by slicing outside the function: autograd then spreads the gradient over the whole weight.
    bias = None if student.bias is None else student.bias[:size]
    return _LinearDivergence.apply(
        student_hidden, student.weight[:size], bias, teacher_hidden.detach(), teacher, divergence or Divergence()
    )


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher_hidden: Tensor, teacher: Head, kind: Divergence
    ) -> Tensor:
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            teacher_hidden = teacher_hidden.to(dtype)
            teacher = Head(teacher.weight.to(dtype), None if teacher.bias is None else teacher.bias.to(dtype))
        ctx.chunk = max(1, MAX_CHUNK_LOGITS // (BUFFERS * len(weight)))
        ctx.kind = kind
        ctx.save_for_backward(hidden, weight, bias, teacher_hidden, teacher.weight, teacher.bias)
        values = []
        with torch.autocast(hidden.device.type, enabled=False):
            for h, t in zip(hidden.split(ctx.chunk), teacher_hidden.split(ctx.chunk), strict=True):
                log_q, log_p = _log_probs(h, weight, bias, kind), _log_probs(t, *teacher, kind)
                values.append(_divergence(log_p, log_q, kind))
        return torch.cat(values) if values else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            log_q = _log_probs(hidden[part], weight, bias, ctx.kind)
            log_p = _log_probs(teacher_hidden[part], teacher_weight, teacher_bias, ctx.kind)
            logits = _grad_logits(log_p, log_q, ctx.kind).mul_(grad[part, None])
            typed = logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(typed, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += typed.t() @ hidden[part]
            if grad_bias is not None:
                grad_bias += logits.sum(0)
        like = [None if g is None else g.to(p.dtype) for g, p in ((grad_weight, weight), (grad_bias, bias))]
        return grad_hidden, like[0], like[1], None, None, None


def _log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, kind: Divergence) -> Tensor:
    return F.log_softmax(F.linear(hidden, weight, bias).float() / kind.temperature, dim=-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    # Where a is 0 its term is 0, even if b is 0 as well.
    a = log_a.exp()
    return torch.where(a > 0, a * (log_a - log_b), 0.0).sum(-1)


def _divergence(log_p: Tensor, log_q: Tensor, kind: Divergence) -> Tensor:
    if kind.kind == "forward":
        return _kl(log_p, log_q)
    if kind.kind == "reverse":
        return _kl(log_q, log_p)
    log_m = _log_mixture(log_p, log_q, kind.teacher_share)
    return kind.teacher_share * _kl(log_p, log_m) + (1 - kind.teacher_share) * _kl(log_q, log_m)


def _grad_logits(log_p: Tensor, log_q: Tensor, kind: Divergence) -> Tensor:
    """Gradient with respect to the student's logits before the temperature.

    With s the derivative by q (up to a constant), a softmax gives q (s - sum q s): s = log(q / p) for the reverse KL and
    (1 - w) log(q / m) for Jensen-Shannon; the forward KL gives q - p at once.
    """
    q = log_q.exp()
    if kind.kind == "forward":
        return (q - log_p.exp()) / kind.temperature
    slope = log_q - log_p
    if kind.kind == "jensen-shannon":
        slope = (1 - kind.teacher_share) * (log_q - _log_mixture(log_p, log_q, kind.teacher_share))
    weighted = torch.where(q > 0, q * slope, 0.0)
    return (weighted - q * weighted.sum(-1, keepdim=True)) / kind.temperature

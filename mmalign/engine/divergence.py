"""Divergence between a teacher's and a student's next-token distributions, from hidden states, chunk by chunk.

Shape legend: K = tokens, S and T = hidden widths of student and teacher, V = vocabulary that both share, N = tokens of the vocabulary
that a cached teacher names.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmalign.engine.head import LogitTransform, add_product_, chunks, times_slope_
from mmalign.errors import UserError
from mmalign.options.methods import DivergenceOptions


class Head(NamedTuple):
    """An output head: linear, and what the model does to the logits behind it."""

    weight: Tensor
    """(V, width) or longer: only the first V rows are used."""
    bias: Tensor | None = None
    """(V,) or longer."""
    transform: LogitTransform = LogitTransform()

    def cut(self, size: int) -> "Head":
        """The first rows; a head of that size as it is, since the gradient of a slice is a copy of the whole."""
        if len(self.weight) == size:
            return self
        return self._replace(weight=self.weight[:size], bias=None if self.bias is None else self.bias[:size])

    def logits(self, hidden: Tensor) -> Tensor:
        """(K, width) states to (K, V) float32 logits."""
        return self.transform.apply_(F.linear(hidden, self.weight, self.bias).float())


class TeacherStates(NamedTuple):
    """What a live teacher predicts: its head turns the hidden states into logits."""

    hidden: Tensor
    """(K, T)"""
    head: Head

    def cut(self, size: int) -> "TeacherStates":
        """The distribution over the first tokens alone."""
        return self._replace(head=self.head.cut(size))

    def cast(self, dtype: torch.dtype) -> "TeacherStates":
        """Change the precision of matrix products, as autocast would."""
        bias = None if self.head.bias is None else self.head.bias.to(dtype)
        return TeacherStates(self.hidden.to(dtype), self.head._replace(weight=self.head.weight.to(dtype), bias=bias))

    def check(self, count: int, options: DivergenceOptions) -> None:
        """Raise UserError if the student has another number of tokens."""
        _check_as_many(count, len(self.hidden))

    def compare(self, part: slice, log_q: Tensor, options: DivergenceOptions, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """Each token's divergence and, on request, its gradient by the student's logits; uses ``log_q``, (k, V), up."""
        return _divergence(_log_probs(self.head.logits(self.hidden[part]), options), log_q, options, with_grad=with_grad)


class TopTokens(NamedTuple):
    """What a cached teacher predicted: its likeliest tokens, and all others together.

    The vocabulary falls into N + 1 buckets. Merging outcomes never raises a divergence (data processing; for the KL, the log-sum
    inequality), so this is at most that of the whole distributions.
    """

    ids: Tensor
    """(K, N) tokens, different in each row."""
    logps: Tensor
    """(K, N + 1): the last one is that of all other tokens together."""

    def cut(self, size: int) -> "TopTokens":
        """The same: the named tokens were chosen from those that both share."""
        return self

    def cast(self, dtype: torch.dtype) -> "TopTokens":
        """The same: there is no matrix product."""
        return self

    def check(self, count: int, options: DivergenceOptions) -> None:
        """Raise UserError if the student has another number of tokens, or the temperature is not 1: a bucket's weight at it is unknown."""
        _check_as_many(count, len(self.ids))
        if options.temperature != 1.0:
            raise UserError(f"temperature is {options.temperature}; log-probabilities of a cached teacher are those at 1: run it live")

    def compare(self, part: slice, log_q: Tensor, options: DivergenceOptions, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """As ``TeacherStates.compare``, over the buckets."""
        ids, log_p = self.ids[part], self.logps[part].float().log_softmax(-1)
        named = log_q.gather(-1, ids)
        rest = log_q.scatter_(-1, ids, -torch.inf)
        # Not log(1 - named mass), which cancels where the student is sure. A rest of probability 0 would make the KL infinite.
        tail = rest.logsumexp(-1, keepdim=True)
        within = rest.sub_(tail).exp_() if with_grad else rest
        floor = torch.finfo(torch.float32).min / 2
        buckets = torch.cat([named, tail], -1).clamp_(min=floor)
        value, grad = _divergence(log_p, buckets, options, with_grad=with_grad)
        if grad is None:
            return value, None
        # The buckets' log-probabilities are a softmax over the named logits and the log-sum of the others.
        logits = within.nan_to_num_(0.0).mul_(grad[:, -1:])
        return value, logits.scatter_(-1, ids, grad[:, :-1])


class MixedStates(NamedTuple):
    """What several live teachers predict, each of its own tokens."""

    owner: Tensor
    """(K,) number of each token's teacher."""
    states: tuple[TeacherStates, ...]
    """Of each teacher its tokens, in their order."""

    def cut(self, size: int) -> "MixedStates":
        """The distributions over the first tokens alone."""
        return self._replace(states=tuple(one.cut(size) for one in self.states))

    def cast(self, dtype: torch.dtype) -> "MixedStates":
        """Change the precision of matrix products."""
        return self._replace(states=tuple(one.cast(dtype) for one in self.states))

    def check(self, count: int, options: DivergenceOptions) -> None:
        """Raise UserError if the student has another number of tokens."""
        _check_as_many(count, sum(len(one.hidden) for one in self.states))

    def compare(self, part: slice, log_q: Tensor, options: DivergenceOptions, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """As ``TeacherStates.compare``, each token with its own teacher."""
        value, grad = log_q.new_empty(len(log_q)), torch.empty_like(log_q) if with_grad else None
        for number, states in enumerate(self.states):
            mine = (self.owner[part] == number).nonzero().squeeze(-1)
            before = int((self.owner[: part.start] == number).sum())
            value[mine], made = states.compare(slice(before, before + len(mine)), log_q[mine], options, with_grad=with_grad)
            if grad is not None and made is not None:
                grad[mine] = made
        return value, grad


Prediction = TeacherStates | TopTokens | MixedStates
"""A teacher's, of each scored token."""


def linear_divergence(hidden: Tensor, head: Head, teacher: Prediction, options: DivergenceOptions) -> Tensor:
    """Compute each token's divergence of student q from teacher p without a [tokens, vocabulary] tensor beyond one chunk.

    With both softened by the temperature, ``forward-kl`` is KL(p || q), ``reverse-kl`` KL(q || p), ``js`` their Jensen-Shannon
    divergence, b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q and b the ``js_weight`` (GKD, arXiv:2306.13649, Eq. 1). It is
    not multiplied by the square of the temperature.

    Args:
        hidden: (K, S) the student's states, with gradient.
        head: The student's, with gradient, over as many tokens as the teacher's: families pad their heads to different lengths.
        teacher: It gets no gradient.
        options: Divergence and temperature.

    Returns:
        (K,) float32, in nats.

    Raises:
        ValueError: If student and teacher have different numbers of scored tokens, or the teacher can't be compared at the temperature.
    """
    assert not options.aligned, "of tokens that both have"
    teacher.check(len(hidden), options)
    return _LinearDivergence.apply(hidden, *head, teacher, options, torch.is_grad_enabled())


def _check_as_many(student: int, teacher: int) -> None:
    if student != teacher:
        raise UserError(f"{student} tokens of the student and {teacher} of the teacher; expected as many")


class _LinearDivergence(torch.autograd.Function):
    """Gradients are made in the forward pass, as if every token counted once.

    A token's hidden state only needs its own scale afterwards. The head's gradient is a sum over tokens: it can be scaled as a whole
    where all count alike, as in a mean; else it is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transform: LogitTransform,
        teacher: Prediction,
        options: DivergenceOptions,
        keep: bool,
    ) -> Tensor:
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            teacher = teacher.cast(dtype)
        values = hidden.new_empty(len(hidden), dtype=torch.float32)
        needs = [keep and needed for needed in ctx.needs_input_grad[:3]]
        grads = _Gradients(hidden, weight, bias, needs=needs)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in chunks(len(hidden), len(weight)):
                values[part], logits = _chunk(part, hidden, Head(weight, bias, transform), teacher, options, with_grad=any(needs))
                if logits is not None:
                    grads.add(part, logits)
                del logits
        # The teacher is no part of the graph: it may be kept as it is.
        ctx.transform, ctx.options, ctx.grads, ctx.teacher = transform, options, grads, teacher
        ctx.save_for_backward(hidden, weight, bias)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        made: _Gradients = ctx.grads
        uniform = len(grad) == 0 or bool((grad == grad[0]).all())
        scale = grad[0] if len(grad) else grad.new_zeros(())
        summed = made
        if not uniform and (made.weight is not None or made.bias is not None):
            summed = _Gradients(hidden, weight, bias, needs=[False, made.weight is not None, made.bias is not None])
            scale = grad.new_ones(())
            for part in chunks(len(hidden), len(weight)):
                _, logits = _chunk(part, hidden, Head(weight, bias, ctx.transform), ctx.teacher, ctx.options, with_grad=True)
                assert logits is not None, "a gradient was asked for"
                summed.add(part, logits.mul_(grad[part, None]))
                del logits
        grad_hidden = None if made.hidden is None else (made.hidden * grad[:, None]).to(hidden.dtype)
        # Not in place: a graph that is kept is gone through again.
        grad_weight = None if summed.weight is None else (summed.weight * scale).to(weight.dtype)
        grad_bias = None if bias is None or summed.bias is None else (summed.bias * scale).to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


class _Gradients:
    """Gradients of the student's inputs, summed chunk by chunk; None for those that nobody needs."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, *, needs: Sequence[bool]) -> None:
        self._inputs = hidden, weight
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs[2] else None

    def add(self, part: slice, logits: Tensor) -> None:
        """Add what a chunk's logits, (k, V), pass on."""
        hidden, weight = self._inputs
        typed = logits.to(hidden.dtype)
        if self.hidden is not None:
            torch.mm(typed, weight, out=self.hidden[part])
        if self.weight is not None:
            add_product_(self.weight, typed.t(), hidden[part])
        if self.bias is not None:
            self.bias += logits.sum(0)


def _chunk(
    part: slice, hidden: Tensor, student: Head, teacher: Prediction, options: DivergenceOptions, *, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    logits = student.logits(hidden[part])
    slope = student.transform.slope(logits) if with_grad else 1.0
    value, grad = teacher.compare(part, _log_probs(logits, options), options, with_grad=with_grad)
    return value, None if grad is None else times_slope_(grad, slope)


def _log_probs(logits: Tensor, options: DivergenceOptions) -> Tensor:
    """Log-probabilities at the divergence's temperature, in place."""
    if options.temperature != 1.0:
        logits.div_(options.temperature)
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def _divergence(log_p: Tensor, log_q: Tensor, options: DivergenceOptions, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Each token's divergence, and on request its gradient with respect to the student's logits before the temperature.

    With s the derivative by q (up to a constant), a softmax gives q (s - sum q s): s = log(q / p) for the reverse KL and
    (1 - b) log(q / m) for Jensen-Shannon; the forward KL gives q - p at once. Both arguments are used up.
    """
    if options.divergence == "forward-kl":
        p = log_p.exp()
        value = _expect(p, log_p.sub_(log_q))
        return value, log_q.exp_().sub_(p).div_(options.temperature) if with_grad else None
    if options.divergence == "reverse-kl":
        q = log_q.exp()
        slope = log_q.sub_(log_p)
        value = _expect(q, slope)
        return value, _through_softmax(q, slope, value).div_(options.temperature) if with_grad else None
    weight = options.js_weight
    log_m = torch.logaddexp(log_p + math.log(weight), log_q + math.log(1 - weight))
    teacher_part = _expect(log_p.exp(), log_p.sub_(log_m))
    q = log_q.exp()
    slope = log_q.sub_(log_m)
    student_part = _expect(q, slope)
    value = weight * teacher_part + (1 - weight) * student_part
    return value, _through_softmax(q, slope, student_part).div_(options.temperature / (1 - weight)) if with_grad else None


def _expect(probs: Tensor, values: Tensor) -> Tensor:
    """Sum of probs * values, where a probability of 0 makes 0 of any value, infinite ones too; those are cleared in place."""
    values.masked_fill_(probs == 0, 0.0)
    return torch.linalg.vecdot(probs, values)


def _through_softmax(q: Tensor, slope: Tensor, mean: Tensor) -> Tensor:
    return slope.sub_(mean[:, None]).mul_(q)

"""The chunked divergence: worked by hand, against torch's own KL, gradients by autograd, memory by chunk."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.engine import head
from mmalign.engine.divergence import Head, TeacherStates, TopTokens, linear_divergence
from mmalign.engine.head import LogitTransform
from mmalign.options.methods import DivergenceName, DivergenceOptions


def kind_of(divergence: DivergenceName, temperature: float = 1.0, *, weight: float = 0.5) -> DivergenceOptions:
    return DivergenceOptions(divergence=divergence, temperature=temperature, js_weight=weight)


KINDS = [kind_of("forward-kl"), kind_of("reverse-kl", 2.0), kind_of("js", 0.7), kind_of("js", 1.5), kind_of("js", 1.5, weight=0.1)]


def naive(log_p: Tensor, log_q: Tensor, kind: DivergenceOptions) -> Tensor:
    """Written with torch's kl_div and probabilities, and differentiated by autograd."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return F.kl_div(b.log(), a, reduction="none").sum(-1)

    p, q = log_p.exp(), log_q.exp()
    if kind.divergence == "forward-kl":
        return kl(p, q)
    if kind.divergence == "reverse-kl":
        return kl(q, p)
    weight = kind.js_weight
    m = weight * p + (1 - weight) * q
    return weight * kl(p, m) + (1 - weight) * kl(q, m)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Head, Tensor, Head]:
    """Thirteen tokens of the student, seventeen of the teacher."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    student = Head(make(13, 6).requires_grad_(), make(13).requires_grad_())
    return make(11, 6).requires_grad_(), student, make(11, 4), Head(make(17, 4), make(17))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.divergence}-{kind.temperature}-{kind.js_weight}")
@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("first_weight", [-1.0, 2.0], ids=["each-its-weight", "all-alike"])
def test_values_and_gradients_equal_autograd(
    kind: DivergenceOptions, chunk: int, first_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", chunk * 13)
    hidden, student, teacher_hidden, teacher = inputs()
    assert student.bias is not None
    assert teacher.bias is not None
    # Both are cut to thirteen tokens before the softmax.
    log_q = (F.linear(hidden, student.weight, student.bias) / kind.temperature).log_softmax(-1)
    log_p = (F.linear(teacher_hidden, teacher.weight[:13], teacher.bias[:13]) / kind.temperature).log_softmax(-1)
    expected = naive(log_p, log_q, kind)
    got = linear_divergence(hidden, student, TeacherStates(teacher_hidden, teacher).cut(13), kind)
    assert torch.allclose(got, expected, atol=1e-6)
    weights = torch.linspace(first_weight, 2, 11)
    leaves = [hidden, student.weight, student.bias]
    wanted = torch.autograd.grad((weights * expected).sum(), leaves)
    found = torch.autograd.grad((weights * got).sum(), leaves)
    for a, b in zip(wanted, found, strict=True):
        assert torch.allclose(a, b, atol=2e-6)


def bounded(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """Logits of a scaled and bounded head, written out."""
    assert transform.softcap is not None
    return transform.softcap * torch.tanh(transform.scale * F.linear(hidden, weight, bias) / transform.softcap)


BOUNDS = LogitTransform(0.5, 1.5), LogitTransform(2.0, 3.0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.divergence}-{kind.temperature}-{kind.js_weight}")
@pytest.mark.parametrize("first_weight", [-1.0, 2.0], ids=["each-its-weight", "all-alike"])
def test_bounded_logits_equal_autograd(kind: DivergenceOptions, first_weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma-2's heads: what stands behind the linear layer is part of both distributions and of the gradient."""
    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", 4 * 13)
    hidden, student, teacher_hidden, teacher = inputs()
    assert teacher.bias is not None
    log_q = (bounded(hidden, student.weight, student.bias, BOUNDS[0]) / kind.temperature).log_softmax(-1)
    log_p = (bounded(teacher_hidden, teacher.weight[:13], teacher.bias[:13], BOUNDS[1]) / kind.temperature).log_softmax(-1)
    expected = naive(log_p, log_q, kind)
    got = linear_divergence(
        hidden, student._replace(transform=BOUNDS[0]), TeacherStates(teacher_hidden, teacher._replace(transform=BOUNDS[1])).cut(13), kind
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    weights = torch.linspace(first_weight, 2, 11)
    leaves = [hidden, student.weight, student.bias]
    wanted = torch.autograd.grad((weights * expected).sum(), leaves)
    for a, b in zip(wanted, torch.autograd.grad((weights * got).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_by_hand() -> None:
    """Teacher (1/2, 1/2), student (1/4, 3/4)."""
    hidden, identity = torch.tensor([[0.25, 0.75]]).log(), Head(torch.eye(2))
    teacher_hidden = torch.zeros(1, 2)
    forward = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    reverse = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    m = (0.375, 0.625)
    shannon = 0.5 * (0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1]))
    shannon += 0.5 * (0.25 * math.log(0.25 / m[0]) + 0.75 * math.log(0.75 / m[1]))
    for kind, expected in (("forward-kl", forward), ("reverse-kl", reverse), ("js", shannon)):
        got = linear_divergence(hidden, identity, TeacherStates(teacher_hidden, identity), kind_of(kind))  # type: ignore[arg-type]
        assert got.item() == pytest.approx(expected, abs=1e-6)


def test_a_weighed_mixture_by_hand() -> None:
    """Teacher (1/2, 1/2), student (1/4, 3/4), weight 1/4: m = (5/16, 11/16); near its ends it is w forward or (1 - w) reverse KL."""
    hidden, teacher, identity = torch.tensor([[0.25, 0.75]]).log(), torch.zeros(1, 2), Head(torch.eye(2))
    toward_teacher = 0.5 * math.log(8 / 5) + 0.5 * math.log(8 / 11)
    toward_student = 0.25 * math.log(4 / 5) + 0.75 * math.log(12 / 11)
    got = linear_divergence(hidden, identity, TeacherStates(teacher, identity), kind_of("js", weight=0.25))
    assert got.item() == pytest.approx(0.25 * toward_teacher + 0.75 * toward_student, abs=1e-6)
    assert got.item() == pytest.approx(0.026048, abs=1e-6)
    forward = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    reverse = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    for weight, limit in ((0.001, 0.001 * forward), (0.999, 0.001 * reverse)):
        near = linear_divergence(hidden, identity, TeacherStates(teacher, identity), kind_of("js", weight=weight))
        assert near.item() == pytest.approx(limit, rel=1e-2)


def test_a_mixture_of_one_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="js_weight is 1; expected more than 0 and less than 1"):
        DivergenceOptions(divergence="js", js_weight=1)
    with pytest.raises(ValueError, match=r"js_weight is 0.3, and divergence 'forward-kl' has none"):
        DivergenceOptions(js_weight=0.3)


def test_a_longer_student_head_gets_no_gradient_beyond_the_teachers() -> None:
    hidden, _, teacher_hidden, teacher = inputs()
    student = Head(torch.randn(20, 6, requires_grad=True))
    linear_divergence(hidden, student.cut(17), TeacherStates(teacher_hidden, teacher), kind_of("forward-kl")).sum().backward()
    grad = student.weight.grad
    assert grad is not None
    assert grad.shape == (20, 6)
    assert grad[17:].abs().max() == 0
    assert grad[:17].abs().min() > 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.divergence}-{kind.temperature}-{kind.js_weight}")
def test_equal_and_extreme_distributions(kind: DivergenceOptions) -> None:
    head = Head(torch.eye(3))
    same = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    value = linear_divergence(same, head, TeacherStates(same.detach(), head), kind)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(value.sum(), same)[0].abs().max() < 1e-6
    far = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = linear_divergence(far, head, TeacherStates(-far.detach(), head), kind)
    assert torch.isfinite(value).all()
    assert value > 0
    assert torch.isfinite(torch.autograd.grad(value.sum(), far)[0]).all()


def test_bad_input() -> None:
    hidden, student, teacher_hidden, teacher = inputs()
    with pytest.raises(ValueError, match="11 tokens of the student and 10 of the teacher"):
        linear_divergence(hidden, student, TeacherStates(teacher_hidden[:10], teacher), kind_of("forward-kl"))
    with pytest.raises(ValueError, match=r"temperature is 0\.0; expected a positive number"):
        kind_of("forward-kl", 0.0)


def test_no_tokens() -> None:
    hidden, student, teacher_hidden, teacher = inputs()
    assert linear_divergence(hidden[:0], student, TeacherStates(teacher_hidden[:0], teacher.cut(13)), KINDS[0]).shape == (0,)


def top_of(log_p: Tensor, number: int) -> TopTokens:
    """A teacher's likeliest tokens, with their log-probabilities and that of all others together."""
    values, ids = log_p.topk(number)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return TopTokens(ids, torch.cat([values, rest], -1))


TOP_KINDS = [kind_of("forward-kl"), kind_of("reverse-kl"), kind_of("js"), kind_of("js", weight=0.8)]


@pytest.mark.parametrize("kind", TOP_KINDS, ids=lambda kind: f"{kind.divergence}-{kind.js_weight}")
@pytest.mark.parametrize("chunk", [2, 1000])
@pytest.mark.parametrize("softcap", [None, 1.5], ids=["linear", "bounded"])
def test_likeliest_tokens_equal_autograd_on_buckets(
    kind: DivergenceOptions, chunk: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", chunk * 13)
    hidden, student, teacher_hidden, teacher = inputs()
    assert teacher.bias is not None
    ids, log_p = top_of(F.linear(teacher_hidden, teacher.weight[:13], teacher.bias[:13]).log_softmax(-1), 4)
    student = student._replace(transform=LogitTransform(softcap=softcap))
    logits = F.linear(hidden, student.weight, student.bias)
    q = (logits if softcap is None else softcap * torch.tanh(logits / softcap)).softmax(-1)
    named = q.gather(-1, ids)
    expected = naive(log_p, torch.cat([named, 1 - named.sum(-1, keepdim=True)], -1).log(), kind)
    got = linear_divergence(hidden, student, TopTokens(ids, log_p), kind)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    leaves = [hidden, student.weight, student.bias]
    wanted = torch.autograd.grad(expected.sum(), leaves)
    for a, b in zip(wanted, torch.autograd.grad(got.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TOP_KINDS, ids=lambda kind: f"{kind.divergence}-{kind.js_weight}")
def test_likeliest_tokens_bound_the_divergence_from_below_and_all_tokens_are_it(kind: DivergenceOptions) -> None:
    hidden, student, teacher_hidden, teacher = inputs()
    assert teacher.bias is not None
    log_p = F.linear(teacher_hidden, teacher.weight[:13], teacher.bias[:13]).log_softmax(-1)
    with torch.no_grad():
        whole = linear_divergence(hidden, student, TeacherStates(teacher_hidden, teacher).cut(13), kind)
        values = [linear_divergence(hidden, student, top_of(log_p, number), kind) for number in (1, 3, 6, 12)]
    for fewer, more in pairwise([*values, whole]):
        assert (fewer <= more + 1e-5).all()
    # Twelve of thirteen: the rest is one token.
    torch.testing.assert_close(values[-1], whole, rtol=1e-4, atol=1e-5)
    assert (values[0] < whole - 1e-3).any()


def test_likeliest_tokens_at_another_temperature_are_refused() -> None:
    hidden, student, *_ = inputs()
    with pytest.raises(ValueError, match="temperature is 2.0; log-probabilities of a cached teacher are those at 1"):
        linear_divergence(hidden, student, TopTokens(torch.zeros(11, 1, dtype=torch.long), torch.zeros(11, 2)), kind_of("forward-kl", 2.0))

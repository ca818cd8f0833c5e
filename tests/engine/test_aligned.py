"""Distances between sorted probabilities: worked by hand, by a second derivation, gradients by autograd through it, memory by chunk."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.engine import aligned, head
from mmalign.engine.aligned import AlignedStates, Alignment, aligned_distance, sorted_distance
from mmalign.engine.divergence import Head, TeacherStates, linear_divergence
from mmalign.engine.head import LogitTransform
from mmalign.options.methods import DivergenceOptions

ULD = DivergenceOptions(divergence="uld")


def states_of(rows: list[list[float]]) -> tuple[Tensor, Head]:
    """States that are log-probabilities, read by an identity."""
    hidden = torch.tensor(rows).log()
    return hidden, Head(torch.eye(hidden.shape[1]))


def test_by_hand() -> None:
    """Sorted, (.5 .3 .2) and (.6 .4) differ by .1, .1 and .2; their order is no matter."""
    p, q = torch.tensor([[0.4, 0.6]]), torch.tensor([[0.2, 0.5, 0.3]])
    assert sorted_distance(p, q).item() == pytest.approx(0.4)
    assert sorted_distance(q, p).item() == pytest.approx(0.4)
    assert sorted_distance(q, q.flip(-1)).item() == 0


def test_groups_by_hand() -> None:
    """Two tokens of the student beside one of the teacher, and the other way round.

    Group 0: (.5 .3 .2) times .6 of the second token, id 0, is (.3 .18 .12); the teacher's (.7 .3): .4 + .12 + .12 = .64.
    Group 1: the student's (.2 .2 .6); the teacher's (.9 .1) times .25, id 1, is (.225 .025): .375 + .175 + .2 = .75.
    A token without a group is nothing.
    """
    hidden, own = states_of([[0.1, 0.1, 0.8], [0.5, 0.3, 0.2], [0.6, 0.2, 0.2], [0.2, 0.2, 0.6]])
    theirs, teacher = states_of([[0.7, 0.3], [0.9, 0.1], [0.75, 0.25]])
    group, student_group = torch.tensor([0, 1, 1]), torch.tensor([-1, 0, 0, 1])
    states = AlignedStates(TeacherStates(theirs, teacher), torch.tensor([0, 0, 1]), group, student_group, None)
    got = aligned_distance(hidden, torch.tensor([0, 1, 0, 2]), own, Alignment((states,)), ULD)
    assert got.tolist() == pytest.approx([0.64, 0.75])


def test_tokens_that_both_have_by_hand() -> None:
    """Of the teacher's four tokens two are the student's: half of each term.

    Student (.5 .3 .2), teacher (.4 .3 .2 .1); the student's 0 is the teacher's 1, its 2 the teacher's 0. By name .5 with .3, .2 with .4:
    m = .4 and .3. Sorted are (.3) and (.2 .1).
    """
    hidden, own = states_of([[0.5, 0.3, 0.2]])
    theirs, teacher = states_of([[0.4, 0.3, 0.2, 0.1]])
    zero = torch.tensor([0])
    matched = (torch.tensor([0, 2]), torch.tensor([1, 0]))
    states = AlignedStates(TeacherStates(theirs, teacher), zero, zero, zero, matched)
    got = aligned_distance(hidden, zero, own, Alignment((states,)), DivergenceOptions(divergence="uld-hybrid"))
    near = sum(0.5 * value * math.log(value / m) for value, m in ((0.5, 0.4), (0.3, 0.4), (0.2, 0.3), (0.4, 0.3)))
    assert got.item() == pytest.approx(0.5 * near + 0.5 * 0.2, abs=1e-6)


BOUNDED = LogitTransform(scale=0.5, softcap=3.0)


class Drawn:
    """Random states and heads, five tokens of the student in three groups with six of the teacher."""

    def __init__(self, *, transform: LogitTransform = LogitTransform()) -> None:  # noqa: B008, frozen
        torch.manual_seed(0)
        self.transform = transform
        self.hidden, self.weight, self.bias = (torch.randn(*shape, requires_grad=True) for shape in ((6, 4), (9, 4), (9,)))
        self.theirs, self.their_weight, self.their_bias = torch.randn(6, 5), torch.randn(7, 5), torch.randn(7)
        self.target, self.their_target = torch.randint(9, (6,)), torch.randint(7, (6,))
        self.student_group, self.group = torch.tensor([0, 0, 1, -1, 2, 2]), torch.tensor([-1, 0, 1, 1, 1, 2])
        self.matched = (torch.tensor([8, 1, 4]), torch.tensor([0, 6, 2]))

    def distance(self, options: DivergenceOptions) -> Tensor:
        matched = self.matched if options.divergence == "uld-hybrid" else None
        states = TeacherStates(self.theirs, Head(self.their_weight, self.their_bias, self.transform))
        alignment = Alignment((AlignedStates(states, self.their_target, self.group, self.student_group, matched),))
        return aligned_distance(self.hidden, self.target, Head(self.weight, self.bias, self.transform), alignment, options)

    def _groups(self, options: DivergenceOptions, *, student: bool) -> list[Tensor]:
        """Full distributions, product by product."""
        hidden, weight, bias = (self.hidden, self.weight, self.bias) if student else (self.theirs, self.their_weight, self.their_bias)
        target, group = (self.target, self.student_group) if student else (self.their_target, self.group)
        logits = F.linear(hidden, weight, bias) * self.transform.scale
        logits = logits if self.transform.softcap is None else self.transform.softcap * torch.tanh(logits / self.transform.softcap)
        probs = (logits / options.temperature).softmax(-1)
        found = []
        for number in range(3):
            first, *later = [place for place in range(6) if group[place] == number]
            found.append(probs[first] * math.prod(probs[place, target[place]] for place in later))
        return found

    def plain(self, options: DivergenceOptions) -> Tensor:
        """By padding with zeros and taking matched tokens out, not by filling them."""
        values = []
        for q, p in zip(self._groups(options, student=True), self._groups(options, student=False), strict=True):
            mine, theirs = self.matched if options.divergence == "uld-hybrid" else (torch.tensor([], dtype=torch.long),) * 2
            rest_q = torch.stack([q[i] for i in range(9) if i not in mine]).sort().values.flip(0)
            rest_p = torch.stack([p[i] for i in range(7) if i not in theirs]).sort().values.flip(0)
            far = (rest_q - torch.cat([rest_p, torch.zeros(len(rest_q) - len(rest_p))])).abs().sum()
            share, b = len(theirs) / 7, options.js_weight
            m = b * p[theirs] + (1 - b) * q[mine]
            near = (b * p[theirs] * (p[theirs] / m).log() + (1 - b) * q[mine] * (q[mine] / m).log()).sum()
            values.append(share * near + (1 - share) * far)
        return torch.stack(values)


@pytest.mark.parametrize("transform", [LogitTransform(), BOUNDED], ids=["plain", "bounded"])
@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"divergence": "uld-hybrid", "js_weight": 0.3, "temperature": 1.5}])
def test_values_and_gradients_are_those_of_full_distributions(
    options: dict[str, Any], transform: LogitTransform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of one group; the groups count differently."""
    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", 1)
    drawn, kind = Drawn(transform=transform), DivergenceOptions(**{"divergence": "uld", **options})
    got, expected = drawn.distance(kind), drawn.plain(kind)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    weights, leaves = torch.tensor([1.0, -0.5, 2.0]), [drawn.hidden, drawn.weight, drawn.bias]
    wanted = torch.autograd.grad((weights * expected).sum(), leaves)
    for a, b in zip(wanted, torch.autograd.grad((weights * got).sum(), leaves), strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [0.2, 0.5])
def test_of_the_same_tokens_the_hybrid_is_jensen_shannon_and_the_other_one_sorted(weight: float) -> None:
    torch.manual_seed(0)
    hidden, theirs, own, other = torch.randn(5, 4), torch.randn(5, 3), Head(torch.randn(9, 4)), Head(torch.randn(9, 3))
    every, target = torch.arange(9), torch.randint(9, (5,))
    taught = TeacherStates(theirs, other)
    states = AlignedStates(taught, target, torch.arange(5), torch.arange(5), (every, every))
    hybrid = DivergenceOptions(divergence="uld-hybrid", js_weight=weight)
    shannon = linear_divergence(hidden, own, taught, DivergenceOptions(divergence="js", js_weight=weight))
    torch.testing.assert_close(aligned_distance(hidden, target, own, Alignment((states,)), hybrid), shannon)
    probs = [(one.weight @ state.T).softmax(0).sort(0).values for one, state in ((own, hidden), (other, theirs))]
    got = aligned_distance(hidden, target, own, Alignment((states._replace(matched=None),)), ULD)
    torch.testing.assert_close(got, (probs[0] - probs[1]).abs().sum(0))
    # A teacher that says the same of other words is as good to it: that is what it can't tell.
    shuffled = TeacherStates(hidden, Head(own.weight.flip(0)))
    blind = AlignedStates(shuffled, target, torch.arange(5), torch.arange(5), None)
    assert float(aligned_distance(hidden, target, own, Alignment((blind,)), ULD).abs().max()) < 1e-6


def test_parts_of_distributions_are_never_closer_than_equal() -> None:
    """The mixture's terms are all 0 or more, where a KL of parts of distributions is not."""
    torch.manual_seed(0)
    for _ in range(20):
        log_p, log_q = ((3 * torch.randn(8, 6)).log_softmax(-1)[:, :2] for _ in range(2))
        assert (aligned._shannon(log_p, log_q, 0.3) >= 0).all()
        assert aligned._shannon(log_p, log_p, 0.3).abs().max() < 1e-6


def test_no_group_is_no_loss_and_keeps_the_graph() -> None:
    drawn = Drawn()
    drawn.student_group = drawn.group = torch.full((6,), -1)
    value = drawn.distance(ULD).sum()
    value.backward()
    assert value.item() == 0
    assert drawn.hidden.grad is not None
    assert not drawn.hidden.grad.any()


def test_no_tensor_of_all_tokens_and_words_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of forward and backward pass, the largest tensor is a chunk's."""
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            sizes.extend(one.numel() for one in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(one, Tensor))
            return out

    monkeypatch.setattr(head, "MAX_CHUNK_LOGITS", 8 * 4 * 900)
    torch.manual_seed(0)
    hidden, own, other = torch.randn(100, 4, requires_grad=True), Head(torch.randn(900, 4, requires_grad=True)), Head(torch.randn(700, 3))
    groups, target = torch.arange(100) // 2, torch.zeros(100, dtype=torch.long)
    states = AlignedStates(TeacherStates(torch.randn(100, 3), other), target, groups, groups, None)
    with Watch():
        aligned_distance(hidden, target, own, Alignment((states,)), ULD).sum().backward()
    assert max(sizes) <= 32 * 900  # of token log-probabilities; of groups 4 * 900
    assert hidden.grad is not None

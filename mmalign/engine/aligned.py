"""Distance between the distributions of models whose tokenizers differ, from hidden states, chunk by chunk.

After ULD (arXiv:2402.12030) and its form in TRL's GOLD: answers are compared group by group, a group being the tokens between two places
where both tokenisations meet. A group's distribution is the one that predicts its first token, times the probability of each later one.

Shape legend: K, J = scored tokens of student and teacher, G = groups, S, T = hidden widths, V, W = tokens of student and teacher,
M = tokens that both have.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmalign.engine.divergence import Head, TeacherStates
from mmalign.engine.head import chunks, linear_token_logps
from mmalign.options.methods import DivergenceOptions

_TENSORS = 8
"""Of a chunk's size that a comparison holds at once: logits, probabilities, sorted ones and their order, of both models."""


class AlignedStates(NamedTuple):
    """What one teacher predicts of its own tokens, and which of the student's they stand beside."""

    states: TeacherStates
    """(J, T), with a head of W rows."""
    target: Tensor
    """(J,) the teacher's tokens."""
    group: Tensor
    """(J,) the group of each, rising from 0; below 0 where it has none."""
    student_group: Tensor
    """(K,) the same of the student's tokens."""
    matched: tuple[Tensor, Tensor] | None
    """(M,) ids of the tokens that both have, the student's and the teacher's: they are compared by name; None: all are sorted."""


class Alignment(NamedTuple):
    """What one or several teachers predict, each of its own rows."""

    teachers: tuple[AlignedStates, ...]


def aligned_distance(hidden: Tensor, target: Tensor, head: Head, alignment: Alignment, options: DivergenceOptions) -> Tensor:
    """Compute each group's distance of student q from teacher p.

    ``uld``: sum over ranks r of |q_(r) - p_(r)|, both sorted, the shorter one filled up with zeros. ``uld-hybrid``: with u = M / W,
    u JS_b(p, q) over the tokens that both have plus (1 - u) times the distance of the others, sorted. JS_b is that of
    ``linear_divergence``, of parts of distributions: no term of it is below 0, which is not so of a KL.

    Args:
        hidden: (K, S) the student's states, with gradient.
        target: (K,) its tokens.
        head: The student's, with gradient, of V rows.
        alignment: The teachers'; they get no gradient.
        options: Distance, weight of the teacher in the mixture, temperature.

    Returns:
        (G,) float32, teacher by teacher.
    """
    return torch.cat([_distances(hidden, target, head, teacher, options) for teacher in alignment.teachers])


class _Groups(NamedTuple):
    """A model's part."""

    hidden: Tensor
    """(G, width) the states that predict first tokens."""
    later: Tensor
    """(G,) log-probability of the later tokens together; 0 where there is none."""
    head: Head

    def log_probs(self, part: slice, temperature: float) -> Tensor:
        """(g, V) logarithms of groups' distributions, which sum to less than 1 where there are later tokens."""
        transform, logits = self.head.transform, F.linear(self.hidden[part], self.head.weight, self.head.bias).float()
        # Not in place, as ``LogitTransform`` has it: the gradient goes through.
        logits = logits * transform.scale
        logits = logits if transform.softcap is None else transform.softcap * torch.tanh(logits / transform.softcap)
        return (logits / temperature).log_softmax(-1) + self.later[part, None]


def _group(hidden: Tensor, target: Tensor, group: Tensor, head: Head, temperature: float) -> _Groups:
    known = group >= 0
    first = known & (group != F.pad(group, (1, 0), value=-1)[:-1])
    later = known & ~first
    transform = head.transform
    softcap = None if transform.softcap is None else transform.softcap / temperature
    logps = linear_token_logps(hidden[later], head.weight, head.bias, target[later], scale=transform.scale / temperature, softcap=softcap)
    start = hidden[first]
    return _Groups(start, logps.new_zeros(len(start)).index_add(0, group[later], logps), head)


def _distances(hidden: Tensor, target: Tensor, head: Head, teacher: AlignedStates, options: DivergenceOptions) -> Tensor:
    student = _group(hidden, target, teacher.student_group, head, options.temperature)
    with torch.no_grad():
        taught = _group(teacher.states.hidden, teacher.target, teacher.group, teacher.states.head, options.temperature)
    width = _TENSORS * max(len(head.weight), len(taught.head.weight))
    found = [
        checkpoint(_compare, part, student, taught, teacher.matched, options, use_reentrant=False)
        for part in chunks(len(student.hidden), width)
    ]
    # A batch without groups is a part of the graph all the same.
    return torch.cat(found) if found else student.later


def _compare(part: slice, student: _Groups, teacher: _Groups, matched: tuple[Tensor, Tensor] | None, options: DivergenceOptions) -> Tensor:
    log_q = student.log_probs(part, options.temperature)
    with torch.no_grad():
        log_p = teacher.log_probs(part, options.temperature)
    if matched is None:
        return sorted_distance(log_p.exp(), log_q.exp())
    mine, theirs = matched
    share = len(theirs) / log_p.shape[-1]
    near = _shannon(log_p[:, theirs], log_q[:, mine], options.js_weight)
    # A probability of zero is sorted behind all others, and adds nothing.
    far = sorted_distance(log_p.exp().index_fill(-1, theirs, 0.0), log_q.exp().index_fill(-1, mine, 0.0))
    return share * near + (1 - share) * far


def sorted_distance(p: Tensor, q: Tensor) -> Tensor:
    """Sum the differences of equal ranks (arXiv:2402.12030): (g, W) and (g, V) to (g,)."""
    size = max(p.shape[-1], q.shape[-1])
    sorted_p, sorted_q = (F.pad(one.sort(-1, descending=True).values, (0, size - one.shape[-1])) for one in (p, q))
    return (sorted_q - sorted_p).abs().sum(-1)


def _shannon(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """``linear_divergence``'s Jensen-Shannon term by term, of parts of distributions: (g, M) each to (g,)."""
    log_m = torch.logaddexp(log_p + math.log(weight), log_q + math.log(1 - weight))
    return (weight * log_p.exp() * (log_p - log_m) + (1 - weight) * log_q.exp() * (log_q - log_m)).sum(-1)

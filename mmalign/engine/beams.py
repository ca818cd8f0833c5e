"""Beam search: the likeliest answer as a whole.

On a model trained by DPO this is the search over its own Q function (From r to Q*, arXiv:2404.12358): summed over an answer,
beta (log pi - log reference) telescopes.

Shape legend: Q = questions, B = beams, V = vocabulary.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from mmalign.engine.prefix import Rows
from mmalign.errors import UserError


@dataclass(frozen=True)
class Beams:
    """Keeps the ``beams`` likeliest beginnings; the score of an answer is sum log p / length ** ``length_penalty``, its end included.

    0 is the paper's search, 1 the mean per token and the default of stock ``generate``.
    """

    beams: int
    length_penalty: float = 0.0
    answers: int = 1
    """The best ones, at most as many as beams; fewer where fewer are found."""

    def __post_init__(self) -> None:
        """Refuse numbers that don't fit together."""
        if self.beams < 2 or not 1 <= self.answers <= self.beams:
            raise UserError(f"beams is {self.beams}, answers {self.answers}; expected 2 or more beams, and at most one answer for each")


@dataclass(frozen=True)
class Hypothesis:
    """A beginning of an answer."""

    ids: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    total: float = 0.0
    """Sum of ``logps`` in float32."""


@dataclass
class Search:
    """The search for one question."""

    beams: Beams
    ends: Container[int]
    live: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    found: list[tuple[float, Hypothesis]] = field(default_factory=list)
    """Ended answers with their scores, the best first."""
    done: bool = False

    def extend(self, candidates: Iterable[tuple[float, int, int, float]], *, last: bool) -> list[int]:
        """Go one token further.

        Args:
            candidates: Sum, beam, token and the token's log-probability, of the likeliest continuations; two for each beam, or more.
            last: Whether answers are cut after this token.

        Returns:
            The beam that each live hypothesis now continues.
        """
        live: list[Hypothesis] = []
        parents: list[int] = []
        # Equally likely ones by the lower beam and token.
        for rank, (total, beam, token, logp) in enumerate(sorted(candidates, key=lambda one: (-one[0], one[1], one[2]))):
            before = self.live[beam]
            hypothesis = Hypothesis((*before.ids, token), (*before.logps, logp), total)
            if last or token in self.ends:
                # One that ends behind the first beams is less likely than as many that go on.
                if rank < self.beams.beams:
                    self.found.append((self._score(hypothesis), hypothesis))
            elif len(live) < self.beams.beams:
                live.append(hypothesis)
                parents.append(beam)
        self.found = sorted(self.found, key=lambda one: -one[0])[: self.beams.beams]
        self.live = live
        full = len(self.found) == self.beams.beams
        # Exact for length penalty 0: sums only fall.
        self.done = last or not live or (full and self._score(live[0]) <= self.found[-1][0])
        return parents

    def _score(self, hypothesis: Hypothesis) -> float:
        return hypothesis.total / len(hypothesis.ids) ** self.beams.length_penalty


def search_beams(rows: Rows, beams: Beams, *, ends: Sequence[int], max_new_tokens: int) -> list[list[Hypothesis]]:
    """Search for the best answers of each row.

    Args:
        rows: A row per question, behind its last word.
        beams: How.
        ends: Tokens that end an answer.
        max_new_tokens: Longest answer.

    Returns:
        For each question its ``beams.answers`` best answers, the best first.
    """
    searches = [Search(beams, frozenset(ends)) for _ in range(len(rows.position))]
    width, size = beams.beams, rows.logits.shape[-1]
    rows.select(torch.arange(len(searches), device=rows.position.device).repeat_interleave(width))
    # As many as leave a live one for each beam, whatever ends.
    kept = min(max(2, 1 + len(ends)) * width, width * size)
    for step in range(max_new_tokens):
        logps = rows.logits.float().log_softmax(-1).view(-1, width, size)
        totals = torch.tensor([_totals(search, width) for search in searches], device=logps.device)
        sums, places = (totals[..., None] + logps).flatten(1).topk(kept)
        found = [sums.tolist(), places.tolist(), logps.flatten(1).gather(-1, places).tolist()]
        order, tokens = [], []
        for number, (search, *columns) in enumerate(zip(searches, *found, strict=True)):
            candidates = [(s, place // size, place % size, p) for s, place, p in zip(*columns, strict=True) if s > -torch.inf]
            parents = [] if search.done else search.extend(candidates, last=step + 1 == max_new_tokens)
            order += [number * width + parent for parent in [*parents, *[0] * width][:width]]
            tokens += [*(hypothesis.ids[-1] for hypothesis in search.live), *[0] * width][:width]
        if all(search.done for search in searches):
            break
        rows.select(torch.tensor(order, device=logps.device))
        rows.step(torch.tensor(tokens, device=logps.device))
    return [[hypothesis for _, hypothesis in search.found[: beams.answers]] for search in searches]


def _totals(search: Search, width: int) -> list[float]:
    """The sum of each beam, -inf for those that hold nothing."""
    live = [] if search.done else [hypothesis.total for hypothesis in search.live]
    return [*live, *[-torch.inf] * width][:width]

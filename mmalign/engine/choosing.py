"""How a row's next token is chosen: the likeliest, or one drawn with a seed of the row's own.

What a row draws depends on its seed, the number of the token in the answer and the token's id alone, not on the rows beside it: it is
computed from them by a hash in 64-bit integers, the same on every device.

Shape legend: R = rows, V = vocabulary, K = tokens that may be drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmalign.errors import UserError

_FIRST_CANDIDATES = 1024
"""Tokens that are sorted to find the likeliest ones; the whole vocabulary only where these are not enough."""


class Decoding(Protocol):
    """What chooses the next token of each row."""

    @property
    def answers(self) -> int:
        """Answers per question."""

    def choose(self, logits: Tensor, seeds: Tensor, step: int) -> Tensor:
        """Return (R,) tokens.

        Rows that have ended may be left out of later calls; rows that are chosen together must end together.

        Args:
            logits: (R, V) of the model.
            seeds: (R,) int64, each row's own.
            step: Number of the token in the answer, from 0.
        """


@dataclass(frozen=True)
class Greedy:
    """The likeliest token."""

    answers: int = 1

    def choose(self, logits: Tensor, seeds: Tensor, step: int) -> Tensor:
        """See ``Decoding``."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class Sampling:
    """Draws from softmax(logits / temperature), from the ``top_k`` likeliest tokens, from the likeliest that have ``top_p`` together.

    In this order, as in stock ``generate``; tokens as likely as the last one that may be drawn may be drawn too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    answers: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError(
                f"temperature is {self.temperature}, top_p {self.top_p}, top_k {self.top_k}; "
                "expected a temperature above 0, top_p above 0 and at most 1, and top_k of 0 (all tokens) or more"
            )

    def choose(self, logits: Tensor, seeds: Tensor, step: int) -> Tensor:
        """See ``Decoding``: the largest of log p + Gumbel noise, which has the distribution p."""
        logps, tokens = self._candidates((logits.float() / self.temperature).log_softmax(-1))
        noise = _gumbel(fold_in(fold_in(seeds, step)[:, None], tokens))
        return tokens.gather(-1, (logps + noise).argmax(-1, keepdim=True)).squeeze(-1)

    def _candidates(self, logps: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of tokens, -inf for those that may not be drawn, and the tokens' ids: (R, K) each."""
        size = logps.shape[-1]
        if self.top_p == 1 and self.top_k == 0:
            return logps, torch.arange(size, device=logps.device).expand(len(logps), -1)
        values, tokens = logps.topk(min(size, max(_FIRST_CANDIDATES, 2 * self.top_k)))
        kept = self._keep(values)
        if kept.shape[-1] < size and bool((kept[:, -1] > -torch.inf).any()):
            values, tokens = logps.sort(-1, descending=True)
            kept = self._keep(values)
        return kept, tokens

    def _keep(self, values: Tensor) -> Tensor:
        """Rule out values, sorted from the largest, behind the top k and the top p."""
        if self.top_k:
            values = values.masked_fill(values < values[:, min(self.top_k, values.shape[-1]) - 1, None], -torch.inf)
            values = values - values.logsumexp(-1, keepdim=True)
        shares = values.exp()
        count = (shares.cumsum(-1) - shares < self.top_p).sum(-1, keepdim=True)
        return values.masked_fill(values < values.gather(-1, count - 1), -torch.inf)


@dataclass(frozen=True)
class Given:
    """The first token of each answer is given: what its log-probability is, is the question."""

    tokens: Sequence[int]
    """One for each answer."""

    @property
    def answers(self) -> int:
        """As many as tokens."""
        return len(self.tokens)

    def choose(self, logits: Tensor, seeds: Tensor, step: int) -> Tensor:
        """See ``Decoding``; the answers of a question stand side by side."""
        return torch.tensor(self.tokens, device=logits.device).repeat(len(logits) // len(self.tokens))


@dataclass(frozen=True)
class Among:
    """Another way of choosing, from some tokens alone."""

    decoding: Decoding
    size: int
    """Only ids below it."""
    barred: Sequence[int] = ()
    """Ids that are never chosen."""

    @property
    def answers(self) -> int:
        """Those of the other way."""
        return self.decoding.answers

    def choose(self, logits: Tensor, seeds: Tensor, step: int) -> Tensor:
        """See ``Decoding``."""
        barred = torch.tensor([i for i in self.barred if i < self.size], dtype=torch.long, device=logits.device)
        return self.decoding.choose(logits[:, : self.size].index_fill(-1, barred, -torch.inf), seeds, step)


def answer_seeds(seeds: Tensor, answers: int) -> Tensor:
    """Give each answer of each row a seed: (R,) to (R * answers,), the answers of a row side by side."""
    return fold_in(seeds[:, None], torch.arange(answers, device=seeds.device)).flatten()


def fold_in(seeds: Tensor, number: Tensor | int) -> Tensor:
    """Derive seeds from seeds and a number by the output function of SplitMix64 (Steele et al. 2014)."""
    value = seeds + (_signed((number + 1) * _GOLDEN % 2**64) if isinstance(number, int) else (number + 1) * _GOLDEN)
    value = (value ^ _shift(value, 30)) * _FIRST_FACTOR
    value = (value ^ _shift(value, 27)) * _SECOND_FACTOR
    return value ^ _shift(value, 31)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


# Products of 64-bit integers wrap around, which is what is wanted.
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST_FACTOR, _SECOND_FACTOR = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros, as unsigned integers do."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _gumbel(bits: Tensor) -> Tensor:
    """Turn 64 random bits into standard Gumbel noise."""
    uniform = (_shift(bits, 11).to(torch.float32) + 0.5) * 2.0**-53
    # Largest where the uniform number is smallest, of which floats hold the most digits. 1 itself would be out of range.
    return -(-torch.log1p(-uniform.clamp_max(1 - 2.0**-24))).log()

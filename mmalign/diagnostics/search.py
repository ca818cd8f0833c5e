"""What a search finds: greedy answers and those of beams, each with the reward that the policy itself gives it.

Summed over an answer, beta (log pi - log ref) is the implicit reward of a policy that DPO trained, and a search for the likeliest answer is
one over its Q function where the reference is uniform (From r to Q*, arXiv:2404.12358).

Shape legend: Q = questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt
from mmalign.diagnostics.collect import PairReader
from mmalign.engine.beams import Beams
from mmalign.engine.choosing import Greedy
from mmalign.engine.generation import Generated, generate, with_answers
from mmalign.engine.logps import compute_response_logps, unwrap
from mmalign.engine.prefix import probe_prefix
from mmalign.engine.probe import probe_rows

Answers = Mapping[str, Sequence[Generated]]
"""Search -> an answer to each question."""


@dataclass(frozen=True)
class Searcher:
    """How questions are answered, and answers scored, by any model."""

    questions: Sequence[EncodedPrompt]
    """One question each, as the sampler takes them."""
    beams: int
    max_new_tokens: int
    pad_token_id: int
    token_type: int
    """Of an answer's tokens."""
    batch_size: int

    def answer(self, model: nn.Module) -> Answers:
        """Answer greedily and with beams of length penalty 0."""
        shared = probe_prefix(unwrap(model), self.questions[0], pad_token_id=self.pad_token_id).shared
        found: dict[str, list[Generated]] = {}
        for name, decoding, rows in (("greedy", Greedy(), 1), ("beams", Beams(self.beams), self.beams)):
            found[name] = []
            size = max(1, self.batch_size // rows)
            for start in range(0, len(self.questions), size):
                asked = self.questions[start : start + size]
                said = generate(
                    unwrap(model),
                    asked,
                    max_new_tokens=self.max_new_tokens,
                    pad_token_id=self.pad_token_id,
                    decoding=decoding,
                    shared=shared,
                )
                found[name] += [answers[0] for (answers,) in said]
        return found

    @torch.no_grad()
    def score(self, model: nn.Module, answers: Sequence[Generated]) -> Tensor:
        """Compute (Q,) log p of each answer as it was generated, with its end, float64."""
        rows = [with_answers(asked, [said], token_type=self.token_type) for asked, said in zip(self.questions, answers, strict=True)]
        shared = probe_rows(model, rows[:1], pad_token_id=self.pad_token_id).shared
        sums = torch.zeros(len(rows), dtype=torch.float64)
        for numbers, batch in PairReader(self.pad_token_id, self.batch_size, shared).batches(model, rows):
            tokens = compute_response_logps(model, batch).per_response()
            sums[numbers] = torch.stack([own.double().sum().cpu() for own in tokens])
        return sums


def describe_answers(answers: Sequence[Generated], policy: Tensor, start: Tensor, *, beta: float) -> dict[str, Any]:
    """Average what is known of some answers.

    Args:
        answers: To each question.
        policy: (Q,) log p under the policy.
        start: (Q,) log p under what it started from.
        beta: Factor of the reward.
    """
    return {
        "reward": float(beta * (policy - start).mean()),
        "policy": float(policy.mean()),
        "start": float(start.mean()),
        "tokens": sum(len(answer.tokens) for answer in answers) / len(answers),
        "cut": sum(answer.end is None for answer in answers) / len(answers),
    }

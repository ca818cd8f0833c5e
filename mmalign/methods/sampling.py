"""Answers that the model in training samples: in eval mode, without gradient, with seeds by step and row.

What an answer is drawn with depends on the seed, the step and the row alone: a run that resumes, another split into micro-batches and
other processes draw the same.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from mmalign.data.encode import EncodedPrompt
from mmalign.engine.choosing import Decoding
from mmalign.engine.generation import Generated, generate
from mmalign.engine.logps import unwrap
from mmalign.engine.prefix import probe_prefix
from mmalign.models.eval_mode import eval_mode

BITS = 63


class Draw(NamedTuple):
    """What a row draws at a step: both uniform, below 2**63."""

    share: int
    """Decides whether it is answered, where only some rows are."""
    seed: int
    """Of its answers."""


def draw(seed: int, step: int, encoded: EncodedPrompt) -> Draw:
    """Draw for a row, which is known by its tokens and images."""
    row = [encoded.prefix_ids, encoded.responses, encoded.image_digest]
    digest = hashlib.sha256(json.dumps([seed, step, row]).encode()).digest()
    return Draw(*(int.from_bytes(digest[at : at + 8], "big") >> (64 - BITS) for at in (0, 8)))


class PolicySampler:
    """Answers questions with the model in training."""

    def __init__(self, decoding: Decoding, *, max_new_tokens: int, pad_token_id: int) -> None:
        """Keep how answers are drawn, and how long they may be."""
        self._decoding, self._length, self._pad = decoding, max_new_tokens, pad_token_id
        self._shared = True

    def start(self, model: nn.Module, question: EncodedPrompt) -> str:
        """Choose between cached prompts and stock ``generate`` on a question; return the reason."""
        with eval_mode(model):
            choice = probe_prefix(unwrap(model), question, pad_token_id=self._pad)
        self._shared = choice.shared
        return choice.reason

    def answer(self, model: nn.Module, questions: Sequence[EncodedPrompt], seeds: Sequence[int]) -> list[list[Generated]]:
        """Answer questions.

        Args:
            model: In training, possibly wrapped by DDP or PEFT.
            questions: One question each, as the sampler takes them.
            seeds: Of each.

        Returns:
            The answers to each.
        """
        with eval_mode(model):
            said = generate(
                unwrap(model),
                questions,
                max_new_tokens=self._length,
                pad_token_id=self._pad,
                decoding=self._decoding,
                seeds=[[seed] for seed in seeds],
                shared=self._shared,
            )
        return [answers for (answers,) in said]

"""Answers that a student in training gives itself, in the place of some rows' own: what on-policy distillation learns from.

Whether a row is answered, and what its answer is drawn with, depends on the seed, the step and the row alone: a run that resumes, another
split into micro-batches and other processes draw the same.

Shape legend: K = scored tokens of a batch, A = sampled answers of it.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt
from mmalign.data.last_answer import answer_start, question_of
from mmalign.engine.choosing import Among, Sampling
from mmalign.engine.generation import Generated, generate
from mmalign.engine.logps import unwrap
from mmalign.engine.prefix import probe_prefix
from mmalign.models.eval_mode import eval_mode
from mmalign.options.methods import OnPolicyOptions

_BITS = 63


class _Draw(NamedTuple):
    """What a row draws at a step: both uniform, below 2**63."""

    share: int
    """Decides whether it is answered."""
    seed: int
    """Of the answer."""


class AnswerSampler:
    """Answers a share of the rows with the model in training, in eval mode and without gradient."""

    def __init__(self, options: OnPolicyOptions, *, pad_token_id: int, size: int, barred: Sequence[int], seed: int) -> None:
        """Keep what is sampled, and from which tokens.

        Args:
            options: Share, temperature and length.
            pad_token_id: The tokenizer's.
            size: Ids below it may be said.
            barred: Of these, those that may not.
            seed: Of the run.
        """
        self._options, self._pad, self._seed = options, pad_token_id, seed
        self._decoding = Among(Sampling(temperature=options.sample_temperature), size, barred)
        self._shared = True

    def start(self, model: nn.Module, encoded: EncodedPrompt) -> str:
        """Choose between cached prompts and stock ``generate`` on a conversation; return a line for the log."""
        with eval_mode(model):
            choice = probe_prefix(unwrap(model), question_of(encoded), pad_token_id=self._pad)
        self._shared = choice.shared
        told = f"the student answers {self._options.on_policy:.0%} of the rows itself, in {self._options.sample_tokens:,} tokens at most"
        return f"{told}; {choice.reason}"

    def draw(self, model: nn.Module, encoded: Sequence[EncodedPrompt], *, step: int) -> list[Generated | None]:
        """Answer some of the conversations.

        Args:
            model: In training, possibly wrapped by DDP or PEFT.
            encoded: The conversations, with the data's answers.
            step: Number of the optimiser's step.

        Returns:
            For each, the answer to its last question, or None where the data's own stays.
        """
        drawn = [_draw(self._seed, step, one) for one in encoded]
        chosen = [number for number, draw in enumerate(drawn) if draw.share < self._options.on_policy * 2**_BITS]
        answers: list[Generated | None] = [None] * len(encoded)
        if not chosen:
            return answers
        with eval_mode(model):
            said = generate(
                unwrap(model),
                [question_of(encoded[number]) for number in chosen],
                max_new_tokens=self._options.sample_tokens,
                pad_token_id=self._pad,
                decoding=self._decoding,
                seeds=[[drawn[number].seed] for number in chosen],
                shared=self._shared,
            )
        for number, ((answer,),) in zip(chosen, said, strict=True):
            answers[number] = answer
        return answers


def collate_answers(encoded: Sequence[EncodedPrompt], answers: Sequence[Generated | None]) -> dict[str, Tensor]:
    """Say what the student answered.

    Args:
        encoded: The conversations with the data's answers.
        answers: From ``AnswerSampler.draw``.

    Returns:
        ``token`` (K,) bool: whether a scored token, in the order of the batch, was sampled; of each sampled answer, (A,), its ``length``
        and whether it ``ended``, which it did not at the longest length.
    """
    flags = []
    for one, answer in zip(encoded, answers, strict=True):
        scored = one.scored[0] if answer is None else one.scored[0][: answer_start(one)]
        flags += [False] * sum(scored) + [True] * (0 if answer is None else len(answer.tokens))
    given = [answer for answer in answers if answer is not None]
    return {
        "token": torch.tensor(flags, dtype=torch.bool),
        "length": torch.tensor([len(answer.tokens) for answer in given], dtype=torch.float32),
        "ended": torch.tensor([answer.end is not None for answer in given], dtype=torch.float32),
    }


def _draw(seed: int, step: int, encoded: EncodedPrompt) -> _Draw:
    row = [encoded.prefix_ids, encoded.responses, encoded.image_digest]
    digest = hashlib.sha256(json.dumps([seed, step, row]).encode()).digest()
    return _Draw(*(int.from_bytes(digest[at : at + 8], "big") >> (64 - _BITS) for at in (0, 8)))

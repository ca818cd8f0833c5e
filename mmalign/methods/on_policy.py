"""Answers that a student in training gives itself, in the place of some rows' own: what on-policy distillation learns from.

Shape legend: K = scored tokens of a batch, A = sampled answers of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmalign.data.encode import EncodedPrompt
from mmalign.data.last_answer import answer_start, question_of
from mmalign.engine.choosing import Among, Sampling
from mmalign.engine.generation import Generated
from mmalign.methods.sampling import BITS, PolicySampler, draw
from mmalign.options.methods import OnPolicyOptions


class AnswerSampler:
    """Answers a share of the rows with the model in training."""

    def __init__(self, options: OnPolicyOptions, *, pad_token_id: int, size: int, barred: Sequence[int], seed: int) -> None:
        """Keep what is sampled, and from which tokens.

        Args:
            options: Share, temperature and length.
            pad_token_id: The tokenizer's.
            size: Ids below it may be said.
            barred: Of these, those that may not.
            seed: Of the run.
        """
        self._options, self._seed = options, seed
        decoding = Among(Sampling(temperature=options.sample_temperature), size, barred)
        self._sampler = PolicySampler(decoding, max_new_tokens=options.sample_tokens, pad_token_id=pad_token_id)

    def start(self, model: nn.Module, encoded: EncodedPrompt) -> str:
        """Choose how a conversation is answered; return a line for the log."""
        reason = self._sampler.start(model, question_of(encoded))
        told = f"the student answers {self._options.on_policy:.0%} of the rows itself, in {self._options.sample_tokens:,} tokens at most"
        return f"{told}; {reason}"

    def draw(self, model: nn.Module, encoded: Sequence[EncodedPrompt], *, step: int) -> list[Generated | None]:
        """Answer some of the conversations.

        Args:
            model: In training, possibly wrapped by DDP or PEFT.
            encoded: The conversations, with the data's answers.
            step: Number of the optimiser's step.

        Returns:
            For each, the answer to its last question, or None where the data's own stays.
        """
        drawn = [draw(self._seed, step, one) for one in encoded]
        chosen = [number for number, one in enumerate(drawn) if one.share < self._options.on_policy * 2**BITS]
        answers: list[Generated | None] = [None] * len(encoded)
        if not chosen:
            return answers
        said = self._sampler.answer(model, [question_of(encoded[number]) for number in chosen], [drawn[number].seed for number in chosen])
        for number, (answer,) in zip(chosen, said, strict=True):
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

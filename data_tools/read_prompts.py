"""Questions about images as a model is asked them; and prompts that it reads once and goes on with many times, as a search does."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from transformers import PaliGemmaProcessor

from mmalign.data.encode import EncodedPrompt, encode_questions
from mmalign.data.rows import Message
from mmalign.engine.choosing import Decoding
from mmalign.engine.generation import Generated, generate
from mmalign.engine.prefix import Prefix, probe_prefix, run_prefixes
from mmalign.errors import UserError


def encode_question(processor: Any, prompt: str, image: Image.Image) -> EncodedPrompt:
    """Tokenise a question about an image.

    Raises:
        ValueError: If the processor refuses it.
    """
    turn = Message(role="user", content=[{"type": "image"}, {"type": "text", "text": prompt}])
    return encode_questions(processor, images=[image], prompts=[[turn]])


class PromptReader:
    """A model that keeps what it has read of some prompts; families that can't share a cache read them again each time."""

    def __init__(self, model: Any, processor: Any) -> None:
        """Hold the model; whether prompts share their cache is asked at the first one.

        Raises:
            ValueError: If the model reads what it has said itself as a part of the prompt.
        """
        if isinstance(processor, PaliGemmaProcessor):
            raise UserError("PaliGemma's prompt is read in both directions, and an answer that has begun would be too; use another model")
        self.model, self.processor = model, processor
        self._pad = processor.tokenizer.pad_token_id
        self._shared: bool | None = None
        self._encoded: list[EncodedPrompt] = []
        self._prefix: Prefix | None = None

    def read(self, encoded: Sequence[EncodedPrompt]) -> None:
        """Read images and prefixes. Those of an earlier call are forgotten."""
        if self._shared is None:
            self._shared = probe_prefix(self.model, encoded[0], pad_token_id=self._pad).shared
        self._encoded = list(encoded)
        self._prefix = run_prefixes(self.model, encoded, pad_token_id=self._pad) if self._shared else None

    def prefix_ids(self, number: int) -> list[int]:
        """The tokens that were read of a prompt."""
        return self._encoded[number].prefix_ids

    def go_on(
        self,
        rests: Sequence[Sequence[Sequence[int]]],
        decoding: Decoding,
        *,
        max_new_tokens: int,
        seeds: Sequence[Sequence[int]] | None = None,
        ends: Sequence[int] | None = None,
    ) -> list[list[list[Generated]]]:
        """Answer behind some rests of each prompt.

        Args:
            rests: For each prompt, the tokens of each rest.
            decoding: How.
            max_new_tokens: Longest answer.
            seeds: For each prompt, of each rest.
            ends: Tokens that end an answer; None: the model's own.

        Returns:
            For each prompt, for each rest, its answers.
        """
        # Over what was read, prompts keep their numbers; whole rows are of those alone that have a rest.
        asked = [i for i, own in enumerate(rests) if own or self._shared]
        prompts = [self._with(self._encoded[i], rests[i]) for i in asked]
        found = generate(
            self.model,
            prompts,
            max_new_tokens=max_new_tokens,
            pad_token_id=self._pad,
            decoding=decoding,
            seeds=None if seeds is None else [seeds[i] for i in asked],
            shared=bool(self._shared),
            ends=ends,
            prefix=self._prefix,
        )
        answers = dict(zip(asked, found, strict=True))
        return [answers.get(i, []) for i in range(len(rests))]

    def _with(self, prompt: EncodedPrompt, rests: Sequence[Sequence[int]]) -> EncodedPrompt:
        plain = [list(rest) for rest in rests]
        return replace(prompt, responses=plain, scored=[[False] * len(rest) for rest in plain], response_types=[{} for _ in plain])

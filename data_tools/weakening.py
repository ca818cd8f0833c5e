"""Hallucination on purpose: decode what a model says more readily the less it sees.

Shape legend: B = rows, N = prompt tokens, V = vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.data.encode import EncodedPrompt, encode_questions
from mmalign.data.weaken import NUM_STEPS, alpha_bars
from mmalign.engine.choosing import Greedy, Sampling
from mmalign.engine.generation import generate
from mmalign.engine.prefix import probe_prefix
from mmalign.errors import UserError


def add_noise(pixels: Tensor, *, step: int, generator: torch.Generator) -> Tensor:
    """Diffuse pixels, as the model's processor normalised them, to a step of the schedule.

    Raises:
        ValueError: If the step is outside the schedule.
    """
    if not 0 <= step < NUM_STEPS:
        raise UserError(f"step is {step}; expected 0 to {NUM_STEPS - 1}")
    kept = alpha_bars()[step].item()
    # Drawn on the CPU in float32, so that the noise does not depend on the device or the precision of the weights.
    noise = torch.randn(pixels.shape, generator=generator).to(pixels)
    return kept**0.5 * pixels + (1 - kept) ** 0.5 * noise


def hallucinating_logits(noisy: Tensor, clean: Tensor, *, contrast: float, plausibility: float) -> Tensor:
    """Amplify what the model says without seeing: (1 + contrast) noisy - contrast clean.

    Visual contrastive decoding (arXiv:2311.16922) has the two the other way round and lessens hallucination; the code that BPO released
    kept that order. Here the noisy branch leads, and it also says which tokens are plausible.

    Args:
        noisy: (B, V) logits given the noised image.
        clean: (B, V) logits given the image.
        contrast: Strength; 0 decodes from the noised image alone.
        plausibility: Tokens less likely than this share of the likeliest one, under the noised image, are ruled out.

    Returns:
        (B, V) logits, -inf where ruled out.
    """
    noisy, clean = noisy.float(), clean.float()
    floor = noisy.amax(dim=-1, keepdim=True) + torch.tensor(plausibility).log()
    return ((1 + contrast) * noisy - contrast * clean).masked_fill(noisy < floor, -torch.inf)


@dataclass(frozen=True)
class Hallucinating:
    """Chooses for both branches in one batch: the first half of the rows sees noised images, the second half the images themselves.

    Both halves continue with the same tokens.
    """

    contrast: float
    plausibility: float
    temperature: float
    """0 is greedy."""
    answers: int = 1

    def choose(self, logits: Tensor, seeds: Tensor, step: int) -> Tensor:
        """Return (2B,) tokens, the same in both halves; see ``Decoding``."""
        noisy, clean = logits.chunk(2)
        amplified = hallucinating_logits(noisy, clean, contrast=self.contrast, plausibility=self.plausibility)
        chooser = Greedy() if self.temperature == 0 else Sampling(self.temperature)
        return chooser.choose(amplified, seeds[: len(noisy)], step).repeat(2)


class Weakener:
    """Answers prompts about images as the model would if it hardly saw them. An answer depends on its seed, not on its batch."""

    def __init__(
        self, model: Any, processor: Any, *, step: int, contrast: float, plausibility: float, temperature: float, max_new_tokens: int
    ) -> None:
        """Prepare; whether rows share their prompt's cache is asked at the first prompt.

        Args:
            model: A multimodal LLM in eval mode.
            processor: Its processor.
            step: How much noise, 0 to 999.
            contrast: See ``hallucinating_logits``.
            plausibility: The same.
            temperature: 0 is greedy.
            max_new_tokens: Longest answer.
        """
        self._model, self._processor, self._step, self._max_new_tokens = model, processor, step, max_new_tokens
        self._decoding = Hallucinating(contrast, plausibility, temperature)
        self._shared: bool | None = None

    def read(self, turns: Sequence[Any], images: Sequence[Any]) -> EncodedPrompt:
        """Make a conversation with image placeholders ready. Raises ``UserError`` where the processor refuses it."""
        return encode_questions(self._processor, images=images, prompts=[turns])

    def __call__(self, clean: Sequence[EncodedPrompt], *, seeds: Sequence[int]) -> list[str]:
        """Answer B conversations that were read; a seed for each, of noise and draws."""
        noisy = [self._noised(prompt, seed) for prompt, seed in zip(clean, seeds, strict=True)]
        pad = self._processor.tokenizer.pad_token_id
        if self._shared is None:
            self._shared = probe_prefix(self._model, clean[0], pad_token_id=pad).shared
        answers = generate(
            self._model,
            [*noisy, *clean],
            max_new_tokens=self._max_new_tokens,
            pad_token_id=pad,
            decoding=self._decoding,
            seeds=[[seed] for seed in (*seeds, *seeds)],
            shared=self._shared,
        )
        said = [one.ids for ((one,),) in answers[: len(clean)]]
        return [self._processor.decode(ids, skip_special_tokens=True).strip() for ids in said]

    def _noised(self, prompt: EncodedPrompt, seed: int) -> EncodedPrompt:
        pixels = prompt.images["pixel_values"].to(self._model.dtype)
        noised = add_noise(pixels, step=self._step, generator=torch.Generator().manual_seed(seed))
        return replace(prompt, images={**prompt.images, "pixel_values": noised})

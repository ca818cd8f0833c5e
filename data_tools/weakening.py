"""Hallucination on purpose: decode what a model says more readily the less it sees.

Shape legend: B = rows, N = prompt tokens, V = vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mmalign.data.encode import batch_prompts
from mmalign.data.weaken import NUM_STEPS, alpha_bars
from mmalign.engine.batch import concatenate_images
from mmalign.engine.generation import continue_rows
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


class HallucinationProcessor(LogitsProcessor):
    """Decodes both branches in one batch: the first half of the rows sees noised images, the second half the images themselves.

    It chooses the token itself and leaves it as the only one, so that both halves continue with the same text and stock ``generate`` keeps
    their caches, positions and masks.
    """

    def __init__(self, *, contrast: float, plausibility: float, temperature: float, generator: torch.Generator) -> None:
        """Set how to decode; temperature 0 is greedy."""
        self.contrast, self.plausibility, self.temperature, self.generator = contrast, plausibility, temperature, generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return (2B, V) scores that allow one token per row, the same in both halves."""
        noisy, clean = scores.chunk(2)
        logits = hallucinating_logits(noisy, clean, contrast=self.contrast, plausibility=self.plausibility)
        if self.temperature == 0:
            tokens = logits.argmax(dim=-1, keepdim=True)
        else:
            probabilities = torch.softmax(logits / self.temperature, dim=-1)
            tokens = torch.multinomial(probabilities.cpu(), 1, generator=self.generator).to(scores.device)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, tokens.repeat(2, 1), 0.0)


def generate_hallucinated(
    model: Any,
    processor: Any,
    prompts: Sequence[Sequence[Any]],
    images: Sequence[Sequence[Any]],
    *,
    step: int,
    contrast: float,
    plausibility: float,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """Answer prompts about images as the model would if it hardly saw them.

    Args:
        model: A multimodal LLM in eval mode.
        processor: Its processor.
        prompts: B conversations with image placeholders.
        images: The images of each.
        step: How much noise, 0 to 999.
        contrast: See ``hallucinating_logits``.
        plausibility: The same.
        temperature: 0 is greedy.
        max_new_tokens: Longest answer.
        seed: Of the noise and of sampling.

    Returns:
        B texts.
    """
    encoded = batch_prompts(processor, prompts, images)
    generator = torch.Generator().manual_seed(seed)
    pixels = encoded["pixel_values"].to(model.dtype)
    noised = add_noise(pixels, step=step, generator=generator)
    # Every input has rows, images or patches along its first axis: two halves of each.
    both = concatenate_images([{**encoded, "pixel_values": half} for half in (noised, pixels)])
    chooser = HallucinationProcessor(contrast=contrast, plausibility=plausibility, temperature=temperature, generator=generator)
    new = continue_rows(model, both, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, logits_processor=[chooser])
    return [processor.decode(ids, skip_special_tokens=True).strip() for ids in new[: len(prompts)]]

"""Pictures from captions, by a pipeline's own call and its own scheduler.

Shape legend: C = channels, S = side in pixels.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmalign.denoisers.pipeline import SHARE, TextToImage
from mmalign.denoisers.rows import to_image
from mmalign.denoisers.schedule import implied_image, levels_at


@torch.no_grad()
def sample_pictures(
    source: TextToImage, captions: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float, side: int
) -> list[Image.Image]:
    """Make a picture of each caption.

    Args:
        source: The pipeline.
        captions: What to draw.
        seeds: Of each picture's noise.
        steps: Of the pipeline's scheduler.
        guidance: Factor of what the caption changes; 1 is none.
        side: S.
    """
    has_latents = source.vae is not None
    size = side * (source.pipeline.vae_scale_factor // source.scale if hasattr(source.pipeline, "vae_scale_factor") else 1)
    # Training shows captions as they are, and pictures at their size.
    as_given = {} if source.name == "StableDiffusionPipeline" else {"clean_caption": False}
    as_given |= {"use_resolution_binning": False} if source.is_pixart else {}
    with _known_target(source):
        made = source.pipeline(
            prompt=list(captions),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt" if has_latents or source.name == "IFPipeline" else "latent",
            **as_given,
        ).images
    # Behind a VAE diffusers scales pixels to 0 to 1.
    return [to_image(2 * pixels - 1 if has_latents else pixels) for pixels in made]


@contextmanager
def _known_target(source: TextToImage) -> Iterator[None]:
    """Let the scheduler of a pipeline that predicts k be told of images instead."""
    scheduler = source.pipeline.scheduler
    if scheduler.config.prediction_type != "k":
        yield
        return
    original, share = scheduler.step, torch.tensor(scheduler.config[SHARE])

    @functools.wraps(original)
    def step(output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        levels = levels_at(scheduler.alphas_cumprod, torch.as_tensor(timestep, device=sample.device).view(1))
        return original(implied_image("k", output, sample, levels, share=share.to(output)), timestep, sample, *args, **options)

    scheduler.step = step
    scheduler.register_to_config(prediction_type="sample")
    try:
        yield
    finally:
        del scheduler.step
        scheduler.register_to_config(prediction_type="k")

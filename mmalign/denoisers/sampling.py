"""Pictures from captions, by a pipeline's own call and its own scheduler, or with the path that each came by.

Shape legend: R = pictures, C = channels, S = side in pixels, s = side of what the denoiser sees.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmalign.denoisers.inversion import build_grid
from mmalign.denoisers.paths import SampledPath
from mmalign.denoisers.pipeline import SHARE, TextToImage, without_warnings
from mmalign.denoisers.rows import to_image
from mmalign.denoisers.schedule import Levels, implied_image, levels_at


@torch.no_grad()
def sample_pictures(
    source: TextToImage, captions: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float, side: int
) -> list[Image.Image | None]:
    """Make a picture of each caption; None where the pipeline's safety checker gives a black one in its place.

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
    as_given = {} if source.name.startswith("StableDiffusion") else {"clean_caption": False}
    as_given |= {"use_resolution_binning": False} if source.is_pixart else {}
    with _known_target(source), without_warnings():
        made = source.pipeline(
            prompt=list(captions),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt" if has_latents or source.name == "IFPipeline" else "latent",
            **as_given,
        )
    hidden = getattr(made, "nsfw_content_detected", None) or [False] * len(captions)
    # Behind a VAE diffusers scales pixels to 0 to 1.
    shown = [to_image(2 * pixels - 1 if has_latents else pixels) for pixels in made.images]
    return [None if black else picture for picture, black in zip(shown, hidden, strict=True)]


@torch.no_grad()
def sample_paths(
    source: TextToImage, captions: Sequence[str], starts: Sequence[int], seeds: Sequence[int], *, steps: int, guidance: float, side: int
) -> list[tuple[Image.Image, SampledPath]]:
    """Make a picture of each caption by DDIM with eta 1, on the grid of inversion, and keep where it was.

    Args:
        source: The pipeline.
        captions: What to draw.
        starts: Seed of the noise that each picture begins with.
        seeds: Seed of the noise of each picture's steps.
        steps: From noise to the picture.
        guidance: Factor of what the caption changes; 1 is none.
        side: S.
    """
    device = source.pipeline.device
    denoiser = source.path_denoiser().eval().to(device)
    shape = (denoiser.channels, side // source.scale, side // source.scale)
    told: dict[str, Any] = {
        "conditions": source.encode_captions(captions, side=side, device=device),
        "blank": None if guidance == 1 else source.encode_captions([""] * len(captions), side=side, device=device),
        "guidance": torch.full((len(captions), 1, 1, 1), guidance, device=device),
    }
    grid = build_grid(denoiser.alphas_cumprod, steps)
    path = [_draw([torch.Generator().manual_seed(seed) for seed in starts], shape).to(device)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for point in range(steps, 0, -1):
        there = Levels(grid.signal[point - 1].to(device), grid.noise[point - 1].to(device))
        mean, sigma = denoiser.step(path[-1], grid.times[point].to(device).expand(len(captions)), there, **told)
        path.append(mean + sigma * _draw(generators, shape).to(device))
    times = grid.times[1:].flip(0)
    pictures = [to_image(pixels) for pixels in source.decode_images(path[-1])]
    return [(picture, SampledPath(own.cpu(), times, guidance)) for picture, own in zip(pictures, torch.stack(path, 1), strict=True)]


def _draw(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


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

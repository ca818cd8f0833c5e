"""Sampled paths, from noise to a picture, as rows hold them: the best of a caption's against the worst.

Shape legend: K = steps, C = channels, s = side of what the denoiser sees.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mmalign.data.pictures import read_caption
from mmalign.denoisers.rows import read_number
from mmalign.errors import UserError

PATH_COLUMNS = ("caption", "paths", "scores")


class SampledPath(NamedTuple):
    """Where a sampler was."""

    latents: Tensor
    """(K + 1, C, s, s) from noise to the picture."""
    times: Tensor
    """(K,) of the scheduler, at which the steps began; they fall."""
    guidance: float
    """Factor of what the caption changed; 1 is none."""


class PathPair(NamedTuple):
    """A caption's best and worst path."""

    caption: str
    chosen: SampledPath
    rejected: SampledPath
    score_chosen: float
    score_rejected: float


def pack_path(path: SampledPath) -> bytes:
    """Write a path as a safetensors file, its latents in float16."""
    guidance = torch.tensor(path.guidance, dtype=torch.float64)
    return save({"latents": path.latents.half().contiguous(), "times": path.times, "guidance": guidance})


def read_path(value: Any, *, channels: int, num_times: int) -> SampledPath:
    """Read what ``pack_path`` wrote.

    Args:
        value: A cell of the data.
        channels: C of the denoiser.
        num_times: Of its scheduler.

    Raises:
        UserError: With the reason, if it is no path of such a denoiser.
    """
    try:
        held = load(value)
        latents, times, guidance = held["latents"].float(), held["times"], held["guidance"].item()
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError("a path can't be read; expected those that sample-denoiser --paths wrote") from error
    steps = len(times)
    if steps < 2 or latents.ndim != 4 or latents.shape[:2] != (steps + 1, channels):
        raise UserError(f"a path of {steps} steps has the shape {list(latents.shape)}; expected [{steps + 1}, {channels}, side, side]")
    if not num_times > times[0] or not (times[:-1] > times[1:]).all() or times[-1] < 0:
        raise UserError(f"a path's times are {times.tolist()}; expected that they fall, from below {num_times} to 0 or more")
    if not latents.isfinite().all():
        raise UserError("a path holds values that are not finite")
    return SampledPath(latents, times, guidance)


def read_path_pair(raw: Mapping[str, Any], *, channels: int, num_times: int) -> PathPair:
    """Read a row's path of the highest score and that of the lowest, the first of those that are even.

    Raises:
        UserError: With the reason, if the row can't be used.
    """
    caption, paths, scores = read_caption(raw), raw["paths"], raw["scores"]
    if not isinstance(paths, list) or not isinstance(scores, list) or not len(paths) == len(scores) >= 2:
        raise UserError(f"scores are {scores!r}; expected a number for each path, of two paths or more")
    numbers = [read_number({"scores": score}, "scores") for score in scores]
    if min(numbers) == max(numbers):
        raise UserError(f"scores are {scores}, and no path is better than another")
    best, worst = (numbers.index(pick(numbers)) for pick in (max, min))
    chosen, rejected = (read_path(paths[i], channels=channels, num_times=num_times) for i in (best, worst))
    if chosen.latents.shape != rejected.latents.shape or chosen.guidance != rejected.guidance or (chosen.times != rejected.times).any():
        raise UserError("two paths have other steps, sizes or guidance; expected those of one run of sample-denoiser --paths")
    return PathPair(caption, chosen, rejected, numbers[best], numbers[worst])

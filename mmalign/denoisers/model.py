"""The part of a pipeline that trains: a stock network, with the schedule and the target that its errors are of.

Shape legend: R = images, ... = channels, height and width, T = steps of the scheduler.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.denoisers.losses import mean_square, step_error
from mmalign.denoisers.schedule import (
    Levels,
    ReverseStep,
    add_noise,
    implied_image,
    implied_noise,
    levels_at,
    make_target,
    reverse_step,
    velocity_scale,
)
from mmalign.options.denoisers import Target

Conditions = Mapping[str, Any]
"""What the network is told of the captions, by its argument's name."""


class Denoiser(nn.Module):
    """Images and noise to squared errors: a policy, or the reference that it is compared with."""

    def __init__(
        self,
        network: nn.Module,
        *,
        alphas_cumprod: Tensor,
        target: Target,
        channels: int,
        share: float = 0.5,
        clip: float | None = None,
    ) -> None:
        """Take the network.

        Args:
            network: A UNet or a transformer of diffusers.
            alphas_cumprod: (T,) of the scheduler.
            target: What the network predicts.
            channels: Of the images; what a network predicts beside them, such as a variance, is left out.
            share: Where k of the target k begins.
            clip: Largest value of an image that the sampler of paths sees; None: any.
        """
        super().__init__()
        self.network, self.target, self.channels, self.clip = network, target, channels, clip
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.share_logit = nn.Parameter(torch.logit(torch.tensor(share))) if target == "k" else None

    alphas_cumprod: Tensor

    @property
    def share(self) -> Tensor | None:
        """() k, where the target has one."""
        return None if self.share_logit is None else self.share_logit.sigmoid()

    def forward(self, images: Tensor, noise: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """(R,) mean squared errors of the target at x_t; of the implied velocity where the target is k."""
        levels = self.levels(times)
        prediction = self.predict(add_noise(images, noise, levels), times, conditions)
        error = prediction - make_target(self.target, images, noise, levels, share=self.share)
        return mean_square(error if self.share is None else velocity_scale(levels, self.share) * error)

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """What the trainer asks of a model under ``--gradient-checkpointing``; the network does it in diffusers' own way."""
        network: Any = self.network
        network.enable_gradient_checkpointing()

    def predict(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """(R, ...) what the network says at x_t."""
        return self.network(noisy, timestep=times, return_dict=False, **conditions)[0][:, : self.channels]

    def predict_noise(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """(R, ...) the noise that the network sees in x_t."""
        return implied_noise(self.target, self.predict(noisy, times, conditions), noisy, self.levels(times), share=self.share)

    def levels(self, times: Tensor) -> Levels:
        """Of image and noise, at the network's own times."""
        return levels_at(self.alphas_cumprod, times)


class PathDenoiser(Denoiser):
    """Steps of sampled paths to -log p, without its constant."""

    def forward(  # type: ignore[override]
        self, noisy: Tensor, reached: Tensor, times: Tensor, reached_times: Tensor, **told: Any
    ) -> Tensor:
        """(R,) ``step_error`` of the points that were reached; what is told is that of ``step``."""
        return step_error(reached, *self.step(noisy, times, self.levels(reached_times), **told))

    def step(
        self, noisy: Tensor, times: Tensor, there: Levels, *, conditions: Conditions, blank: Conditions | None, guidance: Tensor
    ) -> ReverseStep:
        """Where the sampler goes from x_t.

        Args:
            noisy: (R, ...) x_t.
            times: (R,) t.
            there: The levels that it goes to.
            conditions: Of the captions.
            blank: Of no caption; None where nothing is guided.
            guidance: (R, 1, 1, 1) factor of what the captions change.
        """
        prediction = self.predict(noisy, times, conditions)
        if blank is not None:
            without = self.predict(noisy, times, blank)
            prediction = without + guidance * (prediction - without)
        here = self.levels(times)
        image, noise = (implied(self.target, prediction, noisy, here, share=self.share) for implied in (implied_image, implied_noise))
        return reverse_step(image if self.clip is None else image.clamp(-self.clip, self.clip), noise, here, there)

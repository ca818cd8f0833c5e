"""The part of a pipeline that trains: a stock network, with the schedule and the target that its errors are of.

Shape legend: R = images, ... = channels, height and width, T = steps of the scheduler.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.denoisers.losses import mean_square
from mmalign.denoisers.schedule import Levels, add_noise, implied_noise, levels_at, make_target, velocity_scale
from mmalign.options.denoisers import Target

Conditions = Mapping[str, Any]
"""What the network is told of the captions, by its argument's name."""


class Denoiser(nn.Module):
    """Images and noise to squared errors: a policy, or the reference that it is compared with."""

    def __init__(self, network: nn.Module, *, alphas_cumprod: Tensor, target: Target, channels: int, share: float = 0.5) -> None:
        """Take the network.

        Args:
            network: A UNet or a transformer of diffusers.
            alphas_cumprod: (T,) of the scheduler.
            target: What the network predicts.
            channels: Of the images; what a network predicts beside them, such as a variance, is left out.
            share: Where k of the target k begins.
        """
        super().__init__()
        self.network, self.target, self.channels = network, target, channels
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

    def predict(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """(R, ...) what the network says at x_t."""
        return self.network(noisy, timestep=times, return_dict=False, **conditions)[0][:, : self.channels]

    def predict_noise(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """(R, ...) the noise that the network sees in x_t."""
        return implied_noise(self.target, self.predict(noisy, times, conditions), noisy, self.levels(times), share=self.share)

    def levels(self, times: Tensor) -> Levels:
        """Of image and noise, at the network's own times."""
        return levels_at(self.alphas_cumprod, times)

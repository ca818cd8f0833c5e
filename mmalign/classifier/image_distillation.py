"""Small synthetic sets for self-supervised pre-training (KRR-ST, arXiv:2310.06511).

M images and their target features are learned so that kernel ridge regression from them, on the features of networks that are trained on
them, predicts a frozen target's features of real images.

Shape legend: M = synthetic images, N = real images, B = real images of a step, D = width of a network's features, E = of the target's,
S = side.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.classifier.backbone import build_backbone, find_feature_width, find_statistics
from mmalign.classifier.dual_head import Preprocessing
from mmalign.errors import UserError
from mmalign.losses.kernel_ridge import kernel_ridge_error
from mmalign.options.distill_images import DistillImagesOptions, PoolOptions

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-3
"""Of the SGD that networks of the pool learn with."""
# So that no two runs draw the same numbers at any step.
_SEED_STRIDE = 1_000_003


class RealImages(NamedTuple):
    """What the set stands for."""

    pixels: NDArray[np.uint8]
    """(N, 3, S, S)."""
    features: Tensor
    """(N, E), the target's."""


class PoolNetwork:
    """A network of the pool: it learns the set's features from its images by the mean squared error, a step per visit."""

    def __init__(self, backbone: nn.Module, width: int, target_width: int, *, rate: float, age: int = 0) -> None:
        """Put a new head on a backbone of random weights."""
        self.backbone, self.head, self.age = backbone, nn.Linear(width, target_width), age
        self.parts = nn.ModuleList([self.backbone, self.head]).train()
        self.optimizer = torch.optim.SGD(self.parts.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def learn(self, pixels: Tensor, features: Tensor) -> None:
        """Make a step on the whole set."""
        self.optimizer.zero_grad(set_to_none=True)
        F.mse_loss(self.head(self.backbone(pixels)), features).backward()
        self.optimizer.step()
        self.age += 1

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {"age": self.age, "weights": self.parts.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.age = state["age"]
        self.parts.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


class NetworkMaker:
    """Makes networks of the pool from random weights."""

    def __init__(self, options: PoolOptions, *, target_width: int, device: torch.device) -> None:
        """Find the width of the backbone's features, and how its pixels are prepared."""
        self.options, self.target_width, self.device = options, target_width, device
        backbone = self._build()
        self.width = find_feature_width(backbone, options.image_size)
        mean, std = find_statistics("timm", options.backbone, backbone)
        self.preprocessing = Preprocessing(image_size=options.image_size, resize_size=options.image_size, mean=mean, std=std)

    def __call__(self, *, age: int = 0) -> PoolNetwork:
        """Make one, whose age counts from here."""
        rate = self.options.inner_learning_rate
        network = PoolNetwork(self._build(), self.width, self.target_width, rate=rate, age=age)
        network.parts.to(self.device)
        return network

    def _build(self) -> nn.Module:
        return build_backbone("timm", self.options.backbone, self.options.backbone_options)


class ImageDistillation:
    """The set that is learned, the pool, and the steps: each draws its numbers from the seed and its own number alone."""

    def __init__(self, options: DistillImagesOptions, real: RealImages, *, device: torch.device) -> None:
        """Begin at real images, drawn without their classes, and the target's features of them.

        Raises:
            ValueError: If there are fewer real images than synthetic ones.
        """
        number = len(real.features)
        if options.num_images > number:
            raise UserError(f"num_images is {options.num_images} and there are {number} real images to begin at; expected at most so many")
        self.options, self.real, self.device = options, real, device
        self.start = np.sort(np.random.default_rng(options.seed).permutation(number)[: options.num_images])
        self._seed(-1)
        self.make = NetworkMaker(options, target_width=real.features.shape[1], device=device)
        self.preprocessing = self.make.preprocessing
        self.low, self.high = (self.preprocessing.normalize(torch.full((1, 3, 1, 1), one)).to(device) for one in (0.0, 1.0))
        self.pixels = self._prepare(self.start).requires_grad_(True)
        self.features = real.features[self.start].to(device).clone().requires_grad_(True)
        self.optimizer = torch.optim.AdamW([self.pixels, self.features], lr=options.learning_rate)
        # Ages are spread, so that not all networks are new at once.
        ages = [options.online_steps * i // options.pool_size for i in range(options.pool_size)] if options.steps else []
        self.pool = [self.make(age=age) for age in ages]
        self.losses: list[float] = []

    def step(self) -> float:
        """Learn from a batch through one network of the pool, and let that learn in turn; return the batch's loss.

        Raises:
            ValueError: If the loss is not finite.
        """
        number, options = len(self.losses), self.options
        self._seed(number)
        place = int(torch.randint(len(self.pool), ()))
        batch = torch.randint(len(self.real.features), (options.batch_size,))
        network = self.pool[place]
        loss = self.compute_loss(network, batch)
        if not torch.isfinite(loss):
            raise UserError(f"the loss of step {number} is {loss.item()}; lower --learning-rate or --inner-learning-rate")
        self.pixels.grad, self.features.grad = torch.autograd.grad(loss, [self.pixels, self.features])
        self.optimizer.param_groups[0]["lr"] = options.learning_rate * (1 - number / options.steps)
        self.optimizer.step()
        with torch.no_grad():
            self.pixels.clamp_(self.low, self.high)
        if network.age >= options.online_steps:
            self.pool[place] = self.make()
        else:
            network.learn(self.pixels.detach(), self.features.detach())
        self.losses.append(loss.item())
        return self.losses[-1]

    def compute_loss(self, network: PoolNetwork, batch: Tensor) -> Tensor:
        """Mean squared error of the regression from the set to the real images at ``batch``, on the network's features."""
        with torch.no_grad():
            real = network.backbone(self._prepare(batch.numpy()))
        features = network.backbone(self.pixels)
        return kernel_ridge_error(features, self.features, real, self.real.features[batch].to(self.device)).mean()

    def images(self) -> NDArray[np.uint8]:
        """The learned images, (M, 3, S, S)."""
        mean, std = (self.pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.preprocessing.mean, self.preprocessing.std))
        unit = (self.pixels.detach() * std + mean).clamp(0, 1)
        return (unit * 255).round().to(torch.uint8).cpu().numpy()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        learned = {"pixels": self.pixels.detach(), "features": self.features.detach(), "optimizer": self.optimizer.state_dict()}
        return {**learned, "losses": self.losses, "pool": [network.state() for network in self.pool]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave."""
        with torch.no_grad():
            self.pixels.copy_(state["pixels"])
            self.features.copy_(state["features"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])
        for network, held in zip(self.pool, state["pool"], strict=True):
            network.load(held)

    def _prepare(self, index: NDArray[np.int64]) -> Tensor:
        pixels = torch.from_numpy(self.real.pixels[index]).to(self.device)
        return self.preprocessing.normalize(pixels.float() / 255)

    def _seed(self, number: int) -> None:
        torch.manual_seed((self.options.seed + 1) * _SEED_STRIDE + number)

"""Ridge regression on class probabilities in closed form, for many penalties at once, with its leave-one-out predictions.

Shape legend: N = support images, B = other images, C = classes, D = feature width.
"""

import torch
from torch import Tensor

from mmalign.errors import UserError


class Ridge:
    """argmin over (W, b) of sum_i w_i |y_i - b - W x_i|^2 + penalty v |W|^2, the weights w summing to 1.

    v is the variance of the features, summed over their dimensions: a penalty means the same on every backbone. b is not penalised.
    """

    def __init__(self, features: Tensor, values: Tensor, weights: Tensor) -> None:
        """Decompose the features' covariance once, in float64.

        Args:
            features: (N, D).
            values: (N, C) targets y.
            weights: (N,).

        Raises:
            ValueError: If all features are the same.
        """
        self.weights = weights.double() / weights.double().sum()
        self.values = values.double()
        self.mean_features, self.mean_values = self.weights @ features.double(), self.weights @ self.values
        centred = features.double() - self.mean_features
        scaled = centred * self.weights[:, None]
        self.eigenvalues, self.axes = torch.linalg.eigh(centred.t() @ scaled)
        self.eigenvalues = self.eigenvalues.clamp_min(0)
        self.variance = self.eigenvalues.sum()
        if not self.variance > 0:
            raise UserError(f"all {len(features)} images have the same features: there is nothing to fit; is the backbone trained?")
        self.turned = centred @ self.axes
        self.cross = self.axes.t() @ scaled.t() @ (self.values - self.mean_values)

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """W (C, D) and b (C,)."""
        weight = (self.axes @ (self.cross / self._damped(penalty)[:, None])).t()
        return weight, self.mean_values - weight @ self.mean_features

    def predict(self, features: Tensor, penalty: float) -> Tensor:
        """(B, D) to scores (B, C)."""
        weight, bias = self.solve(penalty)
        return features.double() @ weight.t() + bias

    def leave_one_out(self, number: int, penalty: float) -> Tensor:
        """Scores (number, C) of the first support images, each by the fit without it, weights and penalty v as they are."""
        turned, weights = self.turned[:number], self.weights[:number]
        damped = self._damped(penalty)
        scores = turned @ (self.cross / damped[:, None]) + self.mean_values
        leverage = (weights * (1 + (turned.square() / damped).sum(-1)))[:, None]
        return (scores - leverage * self.values[:number]) / (1 - leverage)

    def _damped(self, penalty: float) -> Tensor:
        return self.eigenvalues + penalty * self.variance

"""Kernel ridge regression: the authors' form by hand, its gradient by a second derivation, and what it must give back."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmalign.losses.kernel_ridge import RIDGE, kernel_ridge_error, kernel_ridge_predict


def exact() -> list[Tensor]:
    """Features, targets, real features, real targets."""
    rows = [[[1, 0], [0.5, 1], [-0.3, 0.8]], [[1, 0], [0, 1], [0.2, 0.7]], [[0.2, 0.4], [0.9, -0.1]], [[0.3, 0.5], [0.8, 0.1]]]
    return [torch.tensor(one, dtype=torch.float64) for one in rows]


def test_value_by_hand() -> None:
    """Squared lengths with the bias are 2, 2.25 and 1.73: lambda is 5.98e-6."""
    features, targets, real, real_targets = exact()
    expected = torch.tensor([[0.599986844526, 0.333340819071], [1.099984452533, -0.116657054713]], dtype=torch.float64)
    torch.testing.assert_close(kernel_ridge_predict(features, targets, real), expected, atol=1e-12, rtol=0)
    assert kernel_ridge_error(features, targets, real, real_targets).mean().item() == pytest.approx(0.063674585149, abs=1e-12)


def weights_by_normal_equations(features: NDArray, targets: NDArray) -> NDArray:
    """The same regression seen from the weights: W = (F^T F + lambda I)^-1 F^T Y, by Gauss-Jordan elimination."""
    padded = np.hstack([features, np.ones((len(features), 1))])
    penalty = RIDGE * (padded**2).sum()
    system = np.hstack([padded.T @ padded + penalty * np.eye(padded.shape[1]), padded.T @ targets])
    for i in range(len(system)):
        system[i] /= system[i, i]
        for j in range(len(system)):
            if j != i:
                system[j] -= system[j, i] * system[i]
    return system[:, padded.shape[1] :]


@pytest.mark.parametrize("number", [3, 9])
def test_same_as_the_regression_on_weights(number: int) -> None:
    """Fewer images than features, and more of them."""
    rng = np.random.default_rng(number)
    features, targets, real = rng.normal(size=(number, 5)), rng.normal(size=(number, 2)), rng.normal(size=(4, 5))
    expected = np.hstack([real, np.ones((4, 1))]) @ weights_by_normal_equations(features, targets)
    found = kernel_ridge_predict(*map(torch.from_numpy, (features, targets, real)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def gradients_by_hand(features: NDArray, targets: NDArray, real: NDArray, real_targets: NDArray) -> tuple[NDArray, NDArray]:
    """Work out d loss / d F_s and d loss / d Y_s with lambda held, from the matrix calculus on paper.

    With A = K_ss + lambda I, alpha = A^-1 Y, G = d loss / d P and V = A^-1 K_sr G: dY = V, dK_rs = G alpha^T, dK_ss = -V alpha^T.
    """
    f, r = (np.hstack([one, np.ones((len(one), 1))]) for one in (features, real))
    inverse = np.linalg.inv(f @ f.T + RIDGE * (f**2).sum() * np.eye(len(f)))
    alpha = inverse @ targets
    g = 2 * (r @ f.T @ alpha - real_targets) / real_targets.size
    v = inverse @ f @ r.T @ g
    through_kernel = -(v @ alpha.T + alpha @ v.T) @ f
    return (alpha @ g.T @ r + through_kernel)[:, :-1], v


def test_gradient_by_hand() -> None:
    features, targets, real, real_targets = exact()
    features.requires_grad_(True)
    targets.requires_grad_(True)
    kernel_ridge_error(features, targets, real, real_targets).mean().backward()
    by_features, by_targets = gradients_by_hand(*(one.detach().numpy() for one in (features, targets, real, real_targets)))
    np.testing.assert_allclose(features.grad, by_features, atol=1e-10)
    np.testing.assert_allclose(targets.grad, by_targets, atol=1e-10)


def test_gradient_by_finite_differences() -> None:
    """Lambda moves in the differences and not in the gradient: a part of 1e-6."""
    features, targets, real, real_targets = exact()
    given = [one.requires_grad_(True) for one in (features, targets, real)]
    assert torch.autograd.gradcheck(lambda f, y, r: kernel_ridge_error(f, y, r, real_targets), given, atol=1e-5)


def test_all_images_and_identity_features_give_the_targets_back() -> None:
    targets = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    found = kernel_ridge_predict(torch.eye(6), targets, torch.eye(6))
    torch.testing.assert_close(found.float(), targets, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2), (2, 2)), ((3, 2), (3, 2), (2, 3)), ((3,), (3, 2), (2, 2))])
def test_shapes_that_do_not_fit(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"expected \(M, D\), \(M, E\) and \(B, D\)"):
        kernel_ridge_predict(*(torch.zeros(shape) for shape in shapes))

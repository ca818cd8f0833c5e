"""Heads in closed form: the specification's values, brute force, and what a classifier with one can do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmalign.classifier.closed_form import ALPHAS, PENALTIES, Held, Support, choose, fit_hilbert, fit_ridge, join_support, predict_hilbert
from mmalign.classifier.dual_head import DualHead, load_dual_head
from mmalign.classifier.export import export_classifier
from mmalign.classifier.kernel_head import KernelHead, hilbert_probabilities, squared_distances
from mmalign.classifier.ridge import Ridge
from mmalign.classifier.teachers import ClassifierTeacher
from tests.tiny_classifiers import build_tiny_classifier

POINTS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.8, 0.6, 0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0])


def draw(number: int, width: int = 5, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with a mean of their own, and labels."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(number, width)) + 0.5), torch.from_numpy(rng.integers(0, 3, number))


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (1.0, (0.670367749104, 0.227770283475, 0.101861967421)),
        (2.0, (0.820895522388, 0.149253731343, 0.029850746269)),
        (8.0, (0.998400163817, 0.001597280534, 1 / 391290.0625)),
    ],
)
def test_kernel_on_four_points(alpha: float, expected: tuple[float, ...]) -> None:
    query = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    found = hilbert_probabilities(squared_distances(query, POINTS), F.one_hot(LABELS).double(), alpha=alpha)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-12)
    # Only directions count.
    assert torch.allclose(squared_distances(7 * query, 3 * POINTS), squared_distances(query, POINTS), atol=1e-15)


def test_weights_count_as_copies() -> None:
    """An image of weight 3 is three images, and the order of the singularity needs no small numbers."""
    features, labels = draw(6)
    queries, _ = draw(4, seed=1)
    values = F.one_hot(labels, 3).double()
    weights = torch.tensor([3.0, 1, 1, 2, 1, 1], dtype=torch.float64)
    copies = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4, 5])
    for alpha in (0.5, 16.0, 300.0):
        one = hilbert_probabilities(squared_distances(queries, features), values, alpha=alpha, weights=weights)
        other = hilbert_probabilities(squared_distances(queries, features[copies]), values[copies], alpha=alpha)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.sum(-1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_support_image_has_its_own_label(alpha: float) -> None:
    """Among two thousand, in float32 from the float16 that is stored, for the weakest singularity too."""
    features, labels = draw(2000, 24)
    head = KernelHead(24, 3, num_support=2000, alpha=alpha)
    head.fill(features.float(), F.one_hot(labels, 3).float(), torch.full((2000,), 1 / 2000))
    found = head(features[:300].float()).exp()
    torch.testing.assert_close(found, F.one_hot(labels[:300], 3).float(), atol=1e-6, rtol=0)


def test_kernel_leaves_one_out_as_brute_force_does() -> None:
    features, labels = draw(9)
    taught, votes = draw(7, seed=1)[0], torch.rand(7, 3, generator=torch.Generator().manual_seed(0)).double()
    support = join_support((features, labels), (taught, votes), num_classes=3, label_weight=0.7)
    assert support.weights.tolist() == pytest.approx([0.7 / 9] * 9 + [0.3 / 7] * 7)
    found = predict_hilbert(support, Held(features, labels, inside=True, source=""), ALPHAS)
    for i in range(9):
        kept = torch.arange(16) != i
        squared = (F.normalize(features[i], dim=0) - F.normalize(support.features[kept], dim=-1)).square().sum(-1)
        for number, alpha in enumerate(ALPHAS):
            kernel = support.weights[kept] * squared ** (-alpha / 2)
            expected = (kernel[:, None] * support.values[kept]).sum(0) / kernel.sum()
            torch.testing.assert_close(found[number, i], expected, atol=1e-9, rtol=1e-9)


def solve_by_hand(support: Support, weights: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The normal equations with an intercept that is not penalised."""
    full = torch.cat([support.features, torch.ones(len(weights), 1, dtype=torch.float64)], 1)
    damping = penalty * torch.eye(full.shape[1], dtype=torch.float64)
    damping[-1, -1] = 0
    solution = torch.linalg.solve(full.t() @ (weights[:, None] * full) + damping, full.t() @ (weights[:, None] * support.values))
    return solution[:-1].t(), solution[-1]


def make_support() -> Support:
    features, labels = draw(12)
    weights = torch.linspace(1, 3, 12, dtype=torch.float64)
    return Support(features, F.one_hot(labels, 3).double(), weights / weights.sum())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_ridge_solves_the_normal_equations(penalty: float) -> None:
    support = make_support()
    ridge = Ridge(support.features, support.values, support.weights)
    mean = support.weights @ support.features
    variance = (support.weights[:, None] * (support.features - mean).square()).sum().item()
    for found, expected in zip(ridge.solve(penalty), solve_by_hand(support, support.weights, penalty * variance), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    left_out = ridge.leave_one_out(8, penalty)
    for i in range(8):
        weight, bias = solve_by_hand(support, support.weights.masked_fill(torch.arange(12) == i, 0.0), penalty * variance)
        torch.testing.assert_close(left_out[i], weight @ support.features[i] + bias, atol=1e-9, rtol=1e-9)


def test_ridge_of_two_points_by_hand() -> None:
    """Features -1 and 1: covariance 1, W = 1/2 (-1, 1) / (1 + penalty), b = 1/2."""
    ridge = Ridge(torch.tensor([[-1.0], [1.0]]), torch.eye(2), torch.ones(2))
    weight, bias = ridge.solve(0.25)
    assert weight[:, 0].tolist() == pytest.approx([-0.4, 0.4])
    assert bias.tolist() == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="all 3 images have the same features"):
        Ridge(torch.ones(3, 2), torch.eye(3), torch.ones(3))


def test_the_most_accurate_value_wins_and_then_the_likeliest() -> None:
    """One near image is right where the many far ones are not, so that alpha must be large."""
    angles = torch.tensor([0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    support = Support(torch.stack([angles.cos(), angles.sin()], 1), F.one_hot((angles > 0.3).long(), 3).float(), torch.ones(8) / 8)
    query = torch.tensor([0.15, 0.1, 0.65])
    held = Held(torch.stack([query.cos(), query.sin()], 1), torch.tensor([0, 0, 1]), inside=False, source="")
    head, tried = fit_hilbert(support, held, ALPHAS)
    assert tried[0].accuracy < 1
    right = [one for one in tried if one.accuracy == 1]
    assert head.alpha == choose(tried).value == min(right, key=lambda one: one.nll).value
    torch.testing.assert_close(head(held.features).exp(), predict_hilbert(support, held, [head.alpha])[0], atol=2e-3, rtol=0)


def test_ridge_takes_the_likeliest_scale() -> None:
    features, labels = draw(60)
    features[:, 0] += 4 * labels
    held = Held(features[40:], labels[40:], inside=False, source="")
    support = join_support((features[:40], labels[:40]), None, num_classes=3, label_weight=0.5)
    head, tried = fit_ridge(support, held, PENALTIES)
    best = choose(tried)
    logits = head(held.features.float())
    assert F.cross_entropy(logits, held.labels).item() == pytest.approx(best.nll, rel=1e-4)
    for factor in (0.5, 2.0):
        assert F.cross_entropy(factor * logits, held.labels).item() > best.nll


def fill_head(model: DualHead, **options: Any) -> DualHead:
    """A kernel head of twelve random images on a tiny model's own features."""
    side = model.settings.preprocessing.image_size
    with torch.no_grad():
        features = model(torch.rand(12, 3, side, side, generator=torch.Generator().manual_seed(2))).features
    support = Support(features, F.one_hot(torch.arange(12) % 3, 3).float(), torch.full((12,), 1 / 12))
    model.replace_head(fit_hilbert(support, None, [2.0])[0])
    return model


@pytest.mark.parametrize("options", [{}, {"tower": True}], ids=str)
def test_classifier_with_a_kernel_head(tmp_path: Path, options: dict[str, Any]) -> None:
    """Saved and loaded, as a teacher, and exported it is the same classifier."""
    model = fill_head(build_tiny_classifier(**options))
    model.save_pretrained(tmp_path / "saved")
    loaded = load_dual_head(tmp_path / "saved")
    assert loaded.settings == model.settings
    preprocessing = model.settings.preprocessing
    views = torch.rand(4, 3, preprocessing.image_size, preprocessing.image_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model.mix(model(preprocessing.normalize(views)))
        assert torch.equal(expected, loaded.mix(loaded(preprocessing.normalize(views))))
    assert (expected.max() - expected.min()).item() > 0.05
    teacher = ClassifierTeacher(loaded, classes=("frog", "cat", "dog"), device=torch.device("cpu"))
    torch.testing.assert_close(teacher(views).logits.softmax(-1), expected[:, [2, 0, 1]])
    assert export_classifier(model, tmp_path / "model.onnx", file_format="onnx") <= 1e-5
    assert export_classifier(model, tmp_path / "model.pt2", file_format="torch") <= 1e-5

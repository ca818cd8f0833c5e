"""PCGrad: the paper's rule by hand, and a student whose gradients are projected in the backbone alone."""

import pytest
import torch
from torch import Tensor

from mmalign.classifier.class_logits import ClassLogits
from mmalign.classifier.gradients import project_conflicts, surrogate_loss
from mmalign.classifier.metrics import keep_classes
from mmalign.losses.classifier import label_cross_entropy, teacher_kl
from tests.classifier.test_method import NUMBER, build_method, rows_of


def test_projection_by_hand() -> None:
    """Gradients (1, 0) and (-1, 1): each loses what points against the other."""
    first, second = project_conflicts(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))
    assert first.tolist() == [0.5, 0.5]
    assert second.tolist() == [0.0, 1.0]
    agreeing = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 2.0])
    assert project_conflicts(*agreeing) == agreeing


def test_surrogate_by_hand() -> None:
    """Shared weights (1, 1) with the gradients above, and a weight of its own that both reach."""
    shared, own = torch.nn.Parameter(torch.tensor([1.0, 1.0])), torch.nn.Parameter(torch.tensor(3.0))
    ce, kd = shared[0] + 2 * own, -shared[0] + shared[1] + own
    loss = surrogate_loss(ce, kd, shared=[shared], own=[own])
    assert loss.item() == pytest.approx((ce + kd).item())
    loss.backward()
    assert shared.grad is not None
    assert own.grad is not None
    assert shared.grad.tolist() == [0.5, 1.5]
    assert own.grad.item() == 3.0


def gradients(form: str, weight: float) -> tuple[dict[str, Tensor], float]:
    # A teacher that is sure of the class that the labels pull this student away from.
    sure = torch.zeros(NUMBER, 1, 3)
    sure[..., 1] = 8.0
    cached = ClassLogits(sure, None, "one class")
    model, method = build_method(form, augmentation="none", label_weight=weight, cached=cached)
    model.eval()
    output = method.compute(model, method.collate([rows_of(8, 2)[i] for i in range(4)]))
    output.loss_sum.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, output.loss_sum.item()


def test_student_differs_from_one_head_in_the_backbone_alone() -> None:
    (single, value), (projected, same) = gradients("single-head", 0.5), gradients("pcgrad", 0.5)
    assert same == pytest.approx(value, rel=1e-5)
    assert set(single) == set(projected)
    heads = {name for name in single if not name.startswith("backbone.")}
    assert all(torch.allclose(single[name], projected[name], atol=1e-5) for name in heads)
    # Second derivation: from the gradients of both losses, taken one at a time.
    parts = {}
    for name, weight in (("ce", 1.0), ("kd", 0.0)):
        parts[name] = gradients("single-head", weight)[0]
    backbone = [name for name in single if name not in heads]
    flat = {key: torch.cat([0.5 * found[name].flatten() for name in backbone]).double() for key, found in parts.items()}
    product = flat["ce"] @ flat["kd"]
    expected = flat["ce"] + flat["kd"]
    assert product < 0, "labels and this teacher disagree"
    expected = expected - product / flat["kd"].square().sum() * flat["kd"] - product / flat["ce"].square().sum() * flat["ce"]
    got = torch.cat([projected[name].flatten() for name in backbone]).double()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_without_conflict_it_is_one_head() -> None:
    """A teacher that says what the labels say: both gradients point the same way."""
    weight, inputs = torch.nn.Parameter(torch.zeros(3, 4)), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    teacher = 8.0 * torch.nn.functional.one_hot(labels, 3).float()

    def losses() -> tuple[Tensor, Tensor]:
        logits = inputs @ weight.T
        return label_cross_entropy(logits, labels).sum(), teacher_kl(logits, teacher, temperature=1.0).sum()

    (plain,) = torch.autograd.grad(sum(losses()), [weight])
    (projected,) = torch.autograd.grad(surrogate_loss(*losses(), shared=[weight], own=[]), [weight])
    torch.testing.assert_close(projected, plain, rtol=0, atol=1e-6)


def test_classes_that_are_not_listed_are_never_chosen() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [3.0, 9.0, 0.0]])
    limited = keep_classes(logits, [0, 2])
    assert limited.argmax(-1).tolist() == [2, 0]
    torch.testing.assert_close(limited.softmax(-1)[:, [0, 2]], logits[:, [0, 2]].softmax(-1))

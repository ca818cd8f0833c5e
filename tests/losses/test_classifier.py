"""The two heads' losses: hand-worked values, second derivations, gradients, identities, padding and batches without a label."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.losses.classifier import binary_kl, feature_distance, label_cross_entropy, mix_probabilities, pseudo_label_loss, teacher_kl


def draw(seed: int = 0, shape: tuple[int, int] = (5, 4), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def log(*values: float) -> Tensor:
    return torch.tensor([[math.log(value) for value in values]])


def test_cross_entropy_by_hand() -> None:
    assert label_cross_entropy(log(0.25, 0.75), torch.tensor([0])).item() == pytest.approx(math.log(4))


def test_kl_by_hand_and_its_direction() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3; the other way round it is 3/4 ln 3 - ln 2."""
    student, teacher = log(0.25, 0.75), log(0.5, 0.5)
    assert teacher_kl(student, teacher, temperature=1.0).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert teacher_kl(teacher, student, temperature=1.0).item() == pytest.approx(0.75 * math.log(3) - math.log(2))


def test_temperature_softens_both_and_scales_by_its_square() -> None:
    """Logits log p / 2 of p = (1/16, 9/16) are those of (1/4, 3/4)."""
    student, teacher = log(1 / 16, 9 / 16), log(1.0, 1.0)
    assert teacher_kl(student, teacher, temperature=2.0).item() == pytest.approx(4 * 0.5 * math.log(4 / 3))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_kl_equals_the_library(temperature: float) -> None:
    student, teacher = draw(0), draw(1)
    expected = F.kl_div((student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(teacher_kl(student, teacher, temperature=temperature), temperature**2 * expected)


def test_binary_kl_by_hand() -> None:
    """Logits ln 9 apart at T = 2: sigmoid is 3/4, KL(1/2 || 3/4) = 1/2 ln 4/3, times T^2 = 4; a class that agrees adds nothing."""
    student, teacher = torch.tensor([[math.log(9), 5.0, 0.0]]), torch.tensor([[0.0, 5.0, math.log(9)]])
    assert binary_kl(student, teacher, temperature=2.0).item() == pytest.approx(2 * 4 * 0.5 * math.log(4 / 3))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_binary_kl_equals_the_library(temperature: float) -> None:
    """The KL of both outcomes, as the authors' code has it; and T^2 sum log cosh."""
    student, teacher = draw(0), draw(1)
    apart = ((student - teacher) / temperature).sigmoid()
    half = torch.full_like(apart, 0.5)
    expected = (F.kl_div(apart.log(), half, reduction="none") + F.kl_div((1 - apart).log(), half, reduction="none")).sum(-1)
    found = binary_kl(student, teacher, temperature=temperature)
    torch.testing.assert_close(found, temperature**2 * expected, atol=1e-5, rtol=1e-4)
    cosh = ((student - teacher).double() / (2 * temperature)).cosh().log().sum(-1)
    torch.testing.assert_close(found.double(), temperature**2 * cosh, atol=1e-5, rtol=1e-4)


def test_gradient_of_the_binary_kl_by_hand() -> None:
    """T / 2 tanh((s - t) / 2T) of each class, bounded however far the logits are; nothing reaches the teacher."""
    student, teacher = (1000 * draw(0)).requires_grad_(True), draw(1).requires_grad_(True)
    binary_kl(student, teacher, temperature=2.0).sum().backward()
    torch.testing.assert_close(student.grad, ((student - teacher) / 4).tanh().detach())
    assert teacher.grad is None


def test_gradients() -> None:
    logits = draw(0, dtype=torch.float64).requires_grad_(True)
    teacher, labels = draw(1, dtype=torch.float64), torch.tensor([0, 3, -100, 1, 2])
    assert torch.autograd.gradcheck(lambda x: label_cross_entropy(x, labels), (logits,))
    assert torch.autograd.gradcheck(lambda x: teacher_kl(x, teacher, temperature=2.0), (logits,))
    assert torch.autograd.gradcheck(lambda x: binary_kl(x, teacher, temperature=2.0), (logits,))
    assert torch.autograd.gradcheck(lambda x: feature_distance(x, teacher), (logits,))
    assert torch.autograd.gradcheck(lambda x: feature_distance(x, teacher, kind="mse"), (logits,))
    assert torch.autograd.gradcheck(lambda x: pseudo_label_loss(x, teacher, threshold=0.5)[0], (logits,))
    assert torch.autograd.gradcheck(lambda x: mix_probabilities(x, x * 0.5, ce_head_weight=0.3, kd_head_temperature=0.7), (logits,))


def test_gradient_of_the_kl_by_hand() -> None:
    """d/dz T^2 KL = T (softmax(z / T) - softmax(t / T)); nothing reaches the teacher."""
    student, teacher = draw(0).requires_grad_(True), draw(1).requires_grad_(True)
    teacher_kl(student, teacher, temperature=2.0).sum().backward()
    torch.testing.assert_close(student.grad, 2 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)))
    assert teacher.grad is None


def test_equal_logits_have_no_distance() -> None:
    logits = draw()
    torch.testing.assert_close(teacher_kl(logits, logits + 3.0, temperature=2.0), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(feature_distance(logits, 2 * logits), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(binary_kl(logits, logits, temperature=2.0), torch.zeros(5), atol=1e-6, rtol=0)
    # Not of a softmax: a shift of all logits counts.
    assert (binary_kl(logits, logits + 3.0, temperature=2.0) > 1).all()


def test_mean_squared_error_of_features_by_hand() -> None:
    """Unlike the cosine it knows lengths: (1 + 9) / 2, and 0."""
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[2.0, 5.0], [3.0, 4.0]])
    assert feature_distance(student, teacher, kind="mse").tolist() == [5.0, 0.0]


def test_images_without_label_or_teacher_add_nothing() -> None:
    logits, teacher = draw(0).requires_grad_(True), draw(1)
    teacher[2:] = float("nan")
    labels = torch.tensor([1, 2, -100, -100, -100])
    losses = [label_cross_entropy(logits, labels), *(each(logits, teacher, temperature=2.0) for each in (teacher_kl, binary_kl))]
    first = [label_cross_entropy(logits[:2], labels[:2])]
    first += [each(logits[:2], teacher[:2], temperature=2.0) for each in (teacher_kl, binary_kl)]
    for loss, alone in zip(losses, first, strict=True):
        torch.testing.assert_close(loss, torch.cat([alone, torch.zeros(3)]))
    torch.cat(losses).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[2:] == 0).all()


def test_batches_without_any_label_or_teacher() -> None:
    logits = draw().requires_grad_(True)
    loss = label_cross_entropy(logits, torch.full((5,), -100)) + teacher_kl(logits, torch.full((5, 4), torch.inf), temperature=1.0)
    loss.sum().backward()
    assert (loss == 0).all()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = draw(0).bfloat16(), draw(1).bfloat16()
    loss = teacher_kl(student, teacher, temperature=2.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, teacher_kl(student.float(), teacher.float(), temperature=2.0))


def test_pseudo_labels_count_where_the_weak_view_is_sure() -> None:
    weak, strong = torch.cat([log(0.96, 0.04), log(0.9, 0.1)]), torch.cat([log(0.25, 0.75), log(0.5, 0.5)])
    loss, sure = pseudo_label_loss(strong, weak, threshold=0.95)
    assert sure.tolist() == [True, False]
    assert loss.tolist() == pytest.approx([math.log(4), 0.0])


def test_mixture_by_hand_and_at_its_ends() -> None:
    """0.4 (1/4, 3/4) + 0.6 softmax(log(1/2, 1/2) / b) = (0.4, 0.6)."""
    mixed = mix_probabilities(log(0.25, 0.75), log(0.5, 0.5), ce_head_weight=0.4, kd_head_temperature=0.5)
    assert mixed[0].tolist() == pytest.approx([0.4, 0.6])
    ce_logits, kd_logits = draw(0), draw(1)
    torch.testing.assert_close(mix_probabilities(ce_logits, kd_logits, ce_head_weight=1, kd_head_temperature=0.3), ce_logits.softmax(-1))
    torch.testing.assert_close(mix_probabilities(ce_logits, kd_logits, ce_head_weight=0, kd_head_temperature=1), kd_logits.softmax(-1))


def test_temperature_of_the_mixture_sharpens_the_kd_head_alone() -> None:
    ce_logits, kd_logits = draw(0), draw(1)
    mixed = mix_probabilities(ce_logits, kd_logits, ce_head_weight=0.5, kd_head_temperature=0.25)
    torch.testing.assert_close(2 * mixed - ce_logits.softmax(-1), (kd_logits * 4).softmax(-1))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"label 4 is no class; expected 0 to 3"):
        label_cross_entropy(draw(), torch.tensor([0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match=r"student logits are \(5, 4\), teacher logits \(5, 3\)"):
        teacher_kl(draw(), draw(1, (5, 3)), temperature=1.0)
    with pytest.raises(ValueError, match=r"temperature is 0; expected a number above 0"):
        teacher_kl(draw(), draw(), temperature=0)
    with pytest.raises(ValueError, match=r"ce_head_weight is 1.2; expected a share in \[0, 1\]"):
        mix_probabilities(draw(), draw(), ce_head_weight=1.2, kd_head_temperature=1)

"""Losses of a classifier with two heads (DHO, arXiv:2505.07675): one head learns from labels, the other from a teacher.

Shape legend: B = images, C = classes, D = feature width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import UserError
from mmalign.losses.scores import at_least_float32
from mmalign.options.classifier import FeatureLoss

IGNORED_LABEL = -100


def label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute -log softmax(logits)[label] of each image (arXiv:2505.07675, Eq. 1).

    Args:
        logits: (B, C).
        labels: (B,) class indices; -100 where an image has none.

    Returns:
        (B,) float32 losses; 0 where there is no label.

    Raises:
        ValueError: If the shapes don't fit, or a label is no class.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UserError(f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}; expected (images, classes) and (images,)")
    wrong = (labels != IGNORED_LABEL) & ((labels < 0) | (labels >= logits.shape[1]))
    if wrong.any():
        raise UserError(f"label {labels[wrong][0].item()} is no class; expected 0 to {logits.shape[1] - 1}, or {IGNORED_LABEL} for none")
    return F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORED_LABEL, reduction="none")


def teacher_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Compute T^2 KL(softmax(teacher / T) || softmax(student / T)) of each image (arXiv:2505.07675, Eq. 2).

    Algorithm 1 of the paper prints the arguments the other way round; its equations and code have this direction. The factor T^2 keeps
    the gradient's size over temperatures (arXiv:1503.02531); it is in the code and not in the paper's equations.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C), no gradient flows into them; a row that is not finite has no teacher and gives 0.
        temperature: T.

    Returns:
        (B,) float32 losses.

    Raises:
        ValueError: If the shapes differ or ``temperature`` is not positive.
    """
    teacher, known = _known_teacher(student_logits, teacher_logits, temperature)
    target = (teacher / temperature).log_softmax(-1)
    student = (at_least_float32(student_logits) / temperature).log_softmax(-1)
    divergence = (target.exp() * (target - student)).sum(-1)
    return temperature**2 * divergence.masked_fill(~known, 0.0)


def binary_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Compute DHKD's loss of each image (arXiv:2411.08937; as in its code): every class's logit against the teacher's, without a softmax.

    T^2 sum over classes of KL(Bernoulli(1/2) || Bernoulli(sigmoid((student - teacher) / T))), which is T^2 sum log cosh(difference / 2T).

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C), no gradient flows into them; a row that is not finite has no teacher and gives 0.
        temperature: T.

    Returns:
        (B,) float32 losses.

    Raises:
        ValueError: If the shapes differ or ``temperature`` is not positive.
    """
    teacher, known = _known_teacher(student_logits, teacher_logits, temperature)
    apart = (at_least_float32(student_logits) - teacher) / temperature
    # log cosh(x / 2) without an overflow.
    divergence = ((F.softplus(apart) + F.softplus(-apart)) / 2 - math.log(2)).sum(-1)
    return temperature**2 * divergence.masked_fill(~known, 0.0)


def feature_distance(student_features: Tensor, teacher_features: Tensor, *, kind: FeatureLoss = "cosine") -> Tensor:
    """Compute 1 - cosine of student and teacher features, the feature-distillation baseline, or their mean squared error, (B,) float32."""
    if student_features.shape != teacher_features.shape:
        raise UserError(f"student features are {tuple(student_features.shape)}, the teacher's {tuple(teacher_features.shape)}")
    if kind == "mse":
        return (at_least_float32(student_features) - at_least_float32(teacher_features.detach())).square().mean(-1)
    return 1 - F.cosine_similarity(at_least_float32(student_features), at_least_float32(teacher_features.detach()), dim=-1)


def pseudo_label_loss(strong_logits: Tensor, weak_logits: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Compute FixMatch's loss (arXiv:2001.07685, Eq. 4): cross-entropy of a strong view with the weak view's sure guess.

    Returns:
        (B,) losses, 0 where the guess is below ``threshold``; and (B,) bool, where it counted.
    """
    confidence, guess = at_least_float32(weak_logits.detach()).softmax(-1).max(-1)
    sure = confidence >= threshold
    return label_cross_entropy(strong_logits, guess.masked_fill(~sure, IGNORED_LABEL)), sure


def mix_probabilities(ce_logits: Tensor, kd_logits: Tensor, *, ce_head_weight: float, kd_head_temperature: float) -> Tensor:
    """Mix both heads at inference: a softmax(ce) + (1 - a) softmax(kd / b) (arXiv:2505.07675, Sec. 3.3; probabilities, not logits).

    Args:
        ce_logits: (B, C).
        kd_logits: (B, C).
        ce_head_weight: a, in [0, 1].
        kd_head_temperature: b; acts on the KD head alone.

    Returns:
        (B, C) float32 probabilities.

    Raises:
        ValueError: If a or b is out of range.
    """
    if not 0.0 <= ce_head_weight <= 1.0:
        raise UserError(f"ce_head_weight is {ce_head_weight}; expected a share in [0, 1]")
    _check_temperature(kd_head_temperature)
    from_labels, from_teacher = at_least_float32(ce_logits).softmax(-1), (at_least_float32(kd_logits) / kd_head_temperature).softmax(-1)
    return ce_head_weight * from_labels + (1 - ce_head_weight) * from_teacher


def _known_teacher(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The teacher's logits (B, C), 0 where it is not finite; and (B,) bool, where it is."""
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"student logits are {tuple(student_logits.shape)}, teacher logits {tuple(teacher_logits.shape)}; expected equal "
            "(images, classes): do both know the same classes?"
        )
    _check_temperature(temperature)
    teacher = at_least_float32(teacher_logits.detach())
    known = torch.isfinite(teacher).all(-1)
    return teacher.masked_fill(~known[:, None], 0.0), known


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; expected a number above 0")

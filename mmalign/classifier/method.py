"""Semi-supervised distillation into a classifier: two heads (DHO, arXiv:2505.07675), and the baselines under the same budget.

Shape legend: B = rows, M = unlabelled images of a row, C = classes, S = side of the stored squares, H = side of a view.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmalign.classifier.augment import NUM_STRONG_NUMBERS, draw_numbers, fixed_numbers, make_views, strengthen
from mmalign.classifier.class_logits import ClassLogits
from mmalign.classifier.dual_head import DualHeadOutput, Preprocessing
from mmalign.classifier.gradients import compute_gradient_cosine, surrogate_loss
from mmalign.classifier.image_cache import CachedImages
from mmalign.classifier.teachers import ImageTeacher
from mmalign.engine.logps import unwrap_parallel
from mmalign.errors import UserError
from mmalign.losses.classifier import binary_kl, feature_distance, label_cross_entropy, pseudo_label_loss, teacher_kl
from mmalign.options.classifier import ObjectiveOptions
from mmalign.training.method import Method, MethodOutput, Sum


class DualHeadMethod(Method):
    """The losses of a form on both streams."""

    name = "dual-head"

    def __init__(
        self,
        images: CachedImages,
        objective: ObjectiveOptions,
        *,
        preprocessing: Preprocessing,
        cached: ClassLogits | None = None,
        teacher: ImageTeacher | None = None,
        fixed_views: int = 0,
        seed: int = 0,
    ) -> None:
        """Take images, objective and teacher.

        Args:
            images: All images that the streams name.
            objective: What is computed.
            preprocessing: The student's.
            cached: The teacher's logits of every image, of its centre or of fixed views.
            teacher: A live teacher that sees the student's views; exclusive with ``cached``.
            fixed_views: With ``cached``: how many views of each image there are; 0 = the centre was scored, and views are free.
            seed: Of the fixed views.

        Raises:
            ValueError: If the form needs a teacher and there is none, or two, or the cache has no features, no logits or other views.
        """
        needs = objective.needs_teacher
        if needs == (cached is None and teacher is None) or (cached is not None and teacher is not None):
            given = "none" if cached is None and teacher is None else "one"
            raise UserError(f"form {objective.form} {'needs a teacher' if needs else 'has no use for a teacher'}, and {given} is given")
        if objective.form == "feature-kd" and cached is not None and cached.features is None:
            raise UserError("form feature-kd needs the teacher's features, and the file of logits has none")
        if cached is not None and objective.form != "feature-kd" and not cached.taught.any():
            raise UserError(f"{cached.source}: the teacher's logits are not finite of any image; form {objective.form} learns from them")
        if cached is not None and cached.logits.shape[1] != max(1, fixed_views):
            raise UserError(f"the teacher's logits are of {cached.logits.shape[1]} views and {max(1, fixed_views)} are asked for")
        self.images, self.objective, self.preprocessing = images, objective, preprocessing
        self.cached, self.teacher, self.fixed_views = cached, teacher, fixed_views
        self.labels = torch.from_numpy(images.labels)
        self.numbers = fixed_numbers(len(images.ids), fixed_views, seed=seed) if fixed_views else None
        self._batches = 0

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """uint8 images (B + B M, 3, S, S), labelled ones first, and the teacher's numbers where they are cached."""
        places = [place for stream in ("labeled", "unlabeled") for row in rows for place in row[stream]]
        index = np.array([place for place, _ in places])
        batch = {"images": torch.from_numpy(self.images.pixels[index]), "labels": self.labels[index[: len(rows)]]}
        view = torch.tensor([turn % max(1, self.fixed_views) for _, turn in places])
        if self.numbers is not None:
            batch["numbers"] = self.numbers[index, view]
        if self.cached is not None:
            batch["teacher_logits"] = self.cached.logits[index, view]
            if self.objective.form == "feature-kd":
                assert self.cached.features is not None
                batch["teacher_features"] = self.cached.features[index, view]
        return batch

    def num_items(self, batch: dict[str, Any]) -> int:
        """Rows: labelled images."""
        return len(batch["labels"])

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Sum over rows of w CE + (1 - w) (w_l KD + w_u mean KD of the row's unlabelled images), or the form's own."""
        objective, labels = self.objective, batch["labels"]
        rows = len(labels)
        numbers = batch.get("numbers")
        if numbers is None:
            numbers = draw_numbers(len(batch["images"]))
        if objective.form == "fixmatch":
            return self._compute_fixmatch(model, batch, numbers)
        output = self._run(model, self._student_views(batch["images"], numbers), rows)
        ce = label_cross_entropy(output.ce_logits[:rows], labels)
        metrics = {"loss/ce": _sum(ce), "dual_head/label_accuracy": _sum((output.ce_logits[:rows].argmax(-1) == labels).float())}
        if objective.form == "ce-only":
            return MethodOutput(ce.sum(), metrics)
        logits, features = self._teach(batch, numbers)
        each = self._distil(output, logits, features, rows)
        if objective.form != "feature-kd":
            taught = logits.isfinite().all(-1)
            metrics["dual_head/teacher_agreement"] = _sum((output.kd_logits.argmax(-1) == logits.argmax(-1))[taught].float())
        labeled, unlabeled = each[:rows], each[rows:]
        metrics |= {"loss/kd_labeled": _sum(labeled), "loss/kd_unlabeled": _sum(unlabeled)}
        # A row's M unlabelled images count as their mean.
        kd = objective.labeled_kd_weight * labeled.sum() + objective.unlabeled_kd_weight * unlabeled.sum() * (rows / max(1, len(unlabeled)))
        if objective.form == "kd-only":
            return MethodOutput(kd, metrics)
        if objective.gradient_cosine_every:
            metrics["dual_head/gradient_cosine"] = self._look_at_gradients(model, ce.sum(), kd)
        both = objective.label_weight * ce.sum(), (1 - objective.label_weight) * kd
        if objective.form == "pcgrad" and torch.is_grad_enabled():
            student: Any = unwrap_parallel(model)
            shared = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
            own = [shared.pop(name) for name in list(shared) if not name.startswith("backbone.")]
            return MethodOutput(surrogate_loss(*both, shared=list(shared.values()), own=own), metrics)
        return MethodOutput(both[0] + both[1], metrics)

    def _student_views(self, images: Tensor, numbers: Tensor) -> Tensor:
        views = self._views(images, numbers, self.preprocessing.image_size)
        if self.objective.strong_augmentation:
            views = strengthen(views, draw_numbers(len(views), width=NUM_STRONG_NUMBERS))
        return self.preprocessing.normalize(views)

    def _views(self, images: Tensor, numbers: Tensor, side: int) -> Tensor:
        return make_views(images, numbers, augmentation=self.objective.augmentation, side=side)

    def _teach(self, batch: dict[str, Any], numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.teacher is None:
            return batch["teacher_logits"], batch.get("teacher_features")
        found = self.teacher(self._views(batch["images"], numbers, self.teacher.side))
        return found.logits, found.features

    def _distil(self, output: DualHeadOutput, logits: Tensor, features: Tensor | None, rows: int) -> Tensor:
        """The form's KD of each image, labelled ones first."""
        objective = self.objective
        if objective.form == "feature-kd":
            assert output.teacher_features is not None
            assert features is not None
            return feature_distance(output.teacher_features, features, kind=objective.feature_loss)
        if objective.form == "dhkd":
            return binary_kl(output.kd_logits, logits, temperature=objective.temperature)
        student = output.kd_logits
        if objective.form == "sskd":
            # A head for each stream: the teacher of labelled images speaks to the CE head too.
            student = torch.cat([output.ce_logits[:rows], output.kd_logits[rows:]])
        return teacher_kl(student, logits, temperature=objective.temperature)

    def _run(self, model: nn.Module, pixels: Tensor, rows: int) -> DualHeadOutput:
        if self.objective.form == "ce-only":
            return model(pixels[:rows])
        if self.objective.forward == "concatenated" or len(pixels) == rows:
            return model(pixels)
        parts = zip(model(pixels[:rows]), model(pixels[rows:]), strict=True)
        joined: list[Any] = [None if one is None else torch.cat([one, other]) for one, other in parts]
        return DualHeadOutput(*joined)

    def _compute_fixmatch(self, model: nn.Module, batch: dict[str, Any], numbers: Tensor) -> MethodOutput:
        """arXiv:2001.07685: labelled weak views, and strong views of unlabelled images whose weak views the model is sure of."""
        labels, side = batch["labels"], self.preprocessing.image_size
        rows = len(labels)
        weak = self._views(batch["images"], numbers, side)
        strong = strengthen(weak[rows:], draw_numbers(len(weak) - rows, width=NUM_STRONG_NUMBERS))
        pixels = self.preprocessing.normalize(torch.cat([weak, strong]))
        logits = self._run(model, pixels, rows).ce_logits
        ce = label_cross_entropy(logits[:rows], labels)
        guessed, sure = pseudo_label_loss(logits[len(weak) :], logits[rows : len(weak)], threshold=self.objective.threshold)
        metrics = {"loss/ce": _sum(ce), "loss/pseudo": _sum(guessed), "dual_head/sure": _sum(sure.float())}
        return MethodOutput(ce.sum() + self.objective.unlabeled_kd_weight * guessed.sum() * (rows / max(1, len(guessed))), metrics)

    def _look_at_gradients(self, model: nn.Module, ce: Tensor, kd: Tensor) -> Sum:
        self._batches += 1
        if not model.training or (self._batches - 1) % self.objective.gradient_cosine_every:
            return Sum(torch.zeros(()), 0.0)
        backbone: Any = unwrap_parallel(model).backbone
        return Sum(compute_gradient_cosine(ce, kd, list(backbone.parameters())), 1.0)


def _sum(values: Tensor) -> Sum:
    return Sum(values.detach().float().sum(), float(len(values)))

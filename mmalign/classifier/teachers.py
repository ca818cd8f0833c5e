"""Teachers of a classifier: a zero-shot CLIP or SigLIP, a trained classifier, a timm model with its own head.

Shape legend: B = images, C = classes, D = feature width, P = prompts, S = side.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.classifier.backbone import create_timm
from mmalign.classifier.class_names import few, match_classes, match_words
from mmalign.classifier.dual_head import DualHead, Preprocessing
from mmalign.classifier.prompts import embed_classes
from mmalign.errors import UserError
from mmalign.models.load import load_clip
from mmalign.models.text_towers import pooled

# Images of one forward pass while a few-shot teacher is fitted.
_FIT_BATCH = 64


class TeacherOutput(NamedTuple):
    """Logits (B, C) and features (B, D)."""

    logits: Tensor
    features: Tensor


class ImageTeacher(Protocol):
    """Frozen; sees RGB views in [0, 1] of its own side. Its logits are in the order of the data's classes."""

    side: int

    def __call__(self, views: Tensor) -> TeacherOutput:
        """Classify (B, 3, S, S), without gradient."""


class ClassifierTeacher:
    """A classifier that ``classifier train`` saved; its mixed probabilities are the teacher's, as logits."""

    def __init__(self, model: DualHead, *, classes: Sequence[str] | None = None, what: str = "the teacher", device: torch.device) -> None:
        """Freeze the model.

        Args:
            model: The classifier.
            classes: The data's, where they are not the model's own; the logits are put in their order.
            what: What the model is called in errors.
            device: Where it runs.

        Raises:
            ValueError: If it knows other classes.
        """
        own = model.settings.classes
        self.order = torch.from_numpy(match_classes(own, own if classes is None else classes, what=what)).to(device)
        self.model = model.requires_grad_(False).eval().to(device)
        self.side = model.settings.preprocessing.image_size

    @torch.no_grad()
    def __call__(self, views: Tensor) -> TeacherOutput:
        """Log of the mixture; with one head its logits."""
        output = self.model(self.model.settings.preprocessing.normalize(views))
        if self.model.kd_head is None:
            return TeacherOutput(output.ce_logits.float()[:, self.order], output.features.float())
        return TeacherOutput(self.model.mix(output).clamp_min(1e-12).log()[:, self.order], output.features.float())


class TimmTeacher:
    """Any timm classifier with its published weights."""

    def __init__(
        self,
        architecture: str,
        *,
        device: torch.device,
        classes: Sequence[str] = (),
        words: Sequence[str] = (),
        num_classes: int | None = None,
    ) -> None:
        """Load the weights, and match the checkpoint's class names with the data's.

        Args:
            architecture: timm's name, hf-hub:OWNER/NAME or local-dir:FOLDER.
            device: Where the model runs.
            classes: The data's. The logits are put in their order by the checkpoint's ``label_names``, their descriptions, or, of a model
                with as many classes as an ImageNet has, that set's.
            words: What the classes are called in words, if the user said.
            num_classes: Refused where it stands for ``classes``: a number does not tell which logit is of which class.

        Raises:
            ValueError: If there are no classes or no weights, the head has another number of classes, or the checkpoint names other ones.
        """
        if not classes:
            given = "no classes" if num_classes is None else f"num_classes {num_classes} and no classes"
            raise UserError(
                f"the teacher {architecture} is given {given}; expected classes=, the data's class names in the order of its labels "
                "(load_labeled_images(...).classes): a checkpoint may number the same classes in another order"
            )
        self.model = create_timm(architecture, pretrained=True).requires_grad_(False).eval().to(device)
        if self.model.num_classes != len(classes):
            raise UserError(
                f"{architecture} knows {self.model.num_classes} classes and the data have {few(classes)}; they must be the same"
            )
        names, descriptions = _read_label_names(self.model, classes)
        self.note = ""
        if not names:
            self.note = (
                f"{architecture} does not name its classes: its logits are taken to be in the data's order, {few(classes)}; "
                "a wrong order teaches wrong classes, so compare its accuracy on labelled images"
            )
        found = match_words(names or classes, classes, descriptions=descriptions, words=words, what=architecture)
        self.order = torch.from_numpy(found).to(device)
        settings = resolve_model_data_config(self.model)
        self.side = settings["input_size"][-1]
        self.preprocessing = Preprocessing(
            image_size=self.side, resize_size=self.side, mean=tuple(settings["mean"]), std=tuple(settings["std"])
        )

    @torch.no_grad()
    def __call__(self, views: Tensor) -> TeacherOutput:
        """The model's own logits, in the order of the data's classes."""
        features = self.model.forward_features(self.preprocessing.normalize(views))
        logits = self.model.forward_head(features).float()[:, self.order]
        return TeacherOutput(logits, self.model.forward_head(features, pre_logits=True).float())


class ZeroShotTeacher:
    """CLIP or SigLIP with the class names as text: t = scale * cos(image, class)."""

    def __init__(self, source: str, *, classes: Sequence[str], prompts: Sequence[str], device: torch.device) -> None:
        """Embed the classes once."""
        model, self.processor = load_clip(source)
        self.model: Any = model.requires_grad_(False).to(device)
        image = self.processor.image_processor
        size = getattr(image, "crop_size", None) or image.size
        self.side = size["height"] if "height" in size else size["shortest_edge"]
        self.preprocessing = Preprocessing(
            image_size=self.side, resize_size=self.side, mean=tuple(image.image_mean), std=tuple(image.image_std)
        )
        self.text_features = embed_classes(self.model, self.processor, classes=classes, prompts=prompts)

    @torch.no_grad()
    def __call__(self, views: Tensor) -> TeacherOutput:
        """SigLIP's bias is the same for every class and left out."""
        pixels = self.preprocessing.normalize(views).to(self.model.dtype)
        features = F.normalize(pooled(self.model.get_image_features(pixel_values=pixels)).float(), dim=-1)
        return TeacherOutput(self.model.logit_scale.exp().float() * features @ self.text_features.t(), features)


class TipAdapterTeacher:
    """A few-shot teacher: CLIP with a trained cache of the labelled images (Tip-Adapter-F, arXiv:2111.03930).

    t = scale f W^T + a exp(-b (1 - f A^T)) V with unit features f, class embeddings W, the shots' features A (the one thing that is
    trained) and their one-hot labels V. It must be fitted on the student's own labelled images: others would leak labels.
    """

    def __init__(self, zero_shot: ZeroShotTeacher, *, cache_weight: float = 1.0, sharpness: float = 5.5) -> None:
        """Take the zero-shot model; a and b are the paper's first values, without its search over them."""
        self.zero_shot, self.side = zero_shot, zero_shot.side
        self.cache_weight, self.sharpness = cache_weight, sharpness
        self.keys = nn.Parameter(zero_shot.text_features.new_zeros(0, zero_shot.text_features.shape[1]))
        self.values = self.keys.new_zeros(0, len(zero_shot.text_features))

    def fit(self, views: Sequence[Tensor], labels: Tensor, *, epochs: int = 20, learning_rate: float = 1e-3) -> float:
        """Start A at the mean features of the shots' views and train it by cross-entropy on them.

        Args:
            views: One or more (B, 3, S, S) of the same labelled images.
            labels: (B,).
            epochs: Passes over all views.
            learning_rate: Of AdamW, falling to 0 (cosine).

        Returns:
            Accuracy on the shots at the end.
        """
        seen = [[self.zero_shot(part) for part in one.split(_FIT_BATCH)] for one in views]
        features = torch.stack([torch.cat([part.features for part in one]) for one in seen])
        base = torch.stack([torch.cat([part.logits for part in one]) for one in seen])
        labels = labels.to(features.device)
        self.keys = nn.Parameter(F.normalize(features.mean(0), dim=-1))
        self.values = F.one_hot(labels, len(self.zero_shot.text_features)).float()
        optimizer = torch.optim.AdamW([self.keys], lr=learning_rate, eps=1e-4)
        steps = epochs * len(features)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            view = step % len(features)
            loss = F.cross_entropy(base[view] + self._from_cache(features[view]), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.keys.requires_grad_(False)
        return ((base[0] + self._from_cache(features[0])).argmax(-1) == labels).float().mean().item()

    @torch.no_grad()
    def __call__(self, views: Tensor) -> TeacherOutput:
        """Zero-shot logits plus those of the cache."""
        found = self.zero_shot(views)
        return TeacherOutput(found.logits + self._from_cache(found.features), found.features)

    def _from_cache(self, features: Tensor) -> Tensor:
        affinity = torch.exp(-self.sharpness * (1 - features @ self.keys.t()))
        return self.cache_weight * affinity @ self.values


def _read_label_names(model: Any, classes: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Read the names of a timm checkpoint's classes in the order of its logits, and their descriptions; empty where nobody says."""
    held = model.pretrained_cfg.get("label_names") or []
    if isinstance(held, dict) and all(isinstance(number, int) for number in held.values()):
        held = {number: name for name, number in held.items()}
    names = [str(name) for name in ([held[key] for key in sorted(held, key=int)] if isinstance(held, dict) else held)]
    descriptions = model.pretrained_cfg.get("label_descriptions") or {}
    if names and not isinstance(descriptions, dict):
        descriptions = dict(zip(names, descriptions, strict=True))
    subset = infer_imagenet_subset(model)
    if names or subset is None:
        return names, dict(descriptions)
    # timm's own checkpoints name none; as many classes as an ImageNet has, and its very names in the data, say enough.
    known = ImageNetInfo(subset)
    return (known.label_names(), {}) if set(known.label_names()) == set(classes) else ([], {})

"""A classifier with two heads on one backbone (DHO, arXiv:2505.07675): one for labels, one for a teacher; and its checkpoint folder.

Shape legend: B = images, C = classes, D = feature width, H = height, W = width.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, CLIPVisionModelWithProjection, SiglipVisionModel

from mmalign.errors import UserError
from mmalign.losses.classifier import mix_probabilities
from mmalign.models.load import check_folder, named_errors

CONFIG_FILE, WEIGHTS_FILE = "dual_head.json", "model.safetensors"
# 1 / 0.01, the paper's zeta.
COSINE_SCALE = 100.0
_TOWERS: dict[str, Any] = {"clip_vision_model": CLIPVisionModelWithProjection, "siglip_vision_model": SiglipVisionModel}

HeadKind = Literal["linear", "mlp", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How both heads' probabilities are mixed, and where the numbers come from."""

    ce_head_weight: float = 0.5
    kd_head_temperature: float = 0.5
    source: str = "published default for 1% and 10% of the labels"


# Published for use where there is no validation split (arXiv:2505.07675, by the teacher's and the labels' kind).
PUBLISHED_MIXING = {
    "zero-shot": Mixing(ce_head_weight=0.4, source="published default for a zero-shot teacher and few shots"),
    "few-shot": Mixing(ce_head_weight=0.2, source="published default for a few-shot teacher"),
    "low-shot": Mixing(),
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Shorter side to ``resize_size``, centre crop to ``image_size``, RGB in [0, 1], then (x - mean) / std."""

    image_size: int
    resize_size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Check the sizes."""
        if not 0 < self.image_size <= self.resize_size:
            raise UserError(f"resize_size is {self.resize_size} and image_size {self.image_size}; expected 0 < image_size <= resize_size")

    def normalize(self, views: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (x - mean) / std; channels last in memory, which convolutions run a quarter faster in."""
        mean, std = (views.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return ((views - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class DualHeadConfig:
    """All that rebuilds the model without its weights."""

    library: Literal["timm", "transformers"]
    architecture: str
    """timm's name, or clip_vision_model or siglip_vision_model."""
    backbone: dict[str, Any] = field(default_factory=dict)
    """timm: keywords of ``create_model``; transformers: values of the tower's config."""
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    heads: Literal["dual", "single"] = "dual"
    ce_head: HeadKind = "linear"
    kd_head: HeadKind = "linear"
    teacher_feature_size: int | None = None
    """Width of the teacher's features, where the student learns to predict them (the feature-distillation baseline)."""
    mixing: Mixing = Mixing()

    def __post_init__(self) -> None:
        """Check the classes."""
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise UserError(f"classes are {', '.join(self.classes) or 'none'}; expected at least two, all different")


class DualHeadOutput(NamedTuple):
    """What the model says of a batch; with a single head both logits are the same tensor."""

    ce_logits: Tensor
    kd_logits: Tensor
    features: Tensor
    teacher_features: Tensor | None = None
    """Predicted features of the teacher."""


class DualHead(nn.Module):
    """A backbone with ``ce_head`` and ``kd_head``."""

    def __init__(self, config: DualHeadConfig) -> None:
        """Build with random weights.

        Raises:
            ValueError: If the backbone is unknown, or gives no feature vector.
        """
        super().__init__()
        # Not self.config, which transformers.Trainer takes for a transformers config and writes into.
        self.settings = config
        self.backbone = _build_backbone(config)
        width = _feature_width(self.backbone, config.preprocessing.image_size)
        self.ce_head = _build_head(config.ce_head, width, len(config.classes))
        self.kd_head = _build_head(config.kd_head, width, len(config.classes)) if config.heads == "dual" else None
        size = config.teacher_feature_size
        self.feature_head = None if size is None else nn.Linear(width, size)

    def forward(self, pixels: Tensor) -> DualHeadOutput:
        """Run normalised images (B, 3, H, W)."""
        features = self.backbone(pixels)
        ce_logits = self.ce_head(features)
        kd_logits = ce_logits if self.kd_head is None else self.kd_head(features)
        return DualHeadOutput(ce_logits, kd_logits, features, None if self.feature_head is None else self.feature_head(features))

    def mix(self, output: DualHeadOutput) -> Tensor:
        """Mix the heads as the checkpoint says, (B, C) probabilities."""
        if self.kd_head is None:
            return output.ce_logits.float().softmax(-1)
        mixing = self.settings.mixing
        return mix_probabilities(
            output.ce_logits,
            output.kd_logits,
            ce_head_weight=mixing.ce_head_weight,
            kd_head_temperature=mixing.kd_head_temperature,
        )

    def set_mixing(self, mixing: Mixing) -> None:
        """Change how the heads are mixed; saved with the model."""
        self.settings = dataclasses.replace(self.settings, mixing=mixing)

    def save_pretrained(self, folder: Path) -> None:
        """Write config and weights, each in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{WEIGHTS_FILE}.partial"
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, partial)
        os.replace(partial, folder / WEIGHTS_FILE)
        write_config(folder, self.settings)


class CosineHead(nn.Module):
    """scale * cos(feature, class vector), arXiv:2505.07675, Eq. 10. Class vectors are normalised here, which the released code forgets."""

    def __init__(self, width: int, num_classes: int, *, scale: float = COSINE_SCALE) -> None:
        """Draw random class vectors."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, width) * width**-0.5)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, C)."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


def load_dual_head(source: Path) -> DualHead:
    """Load a checkpoint folder, in eval mode.

    Raises:
        ValueError: If there is none, or its weights don't fit its config.
    """
    if not (source / CONFIG_FILE).is_file() or not (source / WEIGHTS_FILE).is_file():
        raise UserError(f"no classifier at {source}: expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as classifier train saves it")
    with named_errors(str(source)):
        weights = load_file(source / WEIGHTS_FILE)
    model = DualHead(read_config(source))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{source}: {WEIGHTS_FILE} does not fit {CONFIG_FILE}: {error}") from error
    return model.eval()


def read_config(source: Path) -> DualHeadConfig:
    """Read a checkpoint's config."""
    values = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    known = {f.name for f in dataclasses.fields(DualHeadConfig)}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserError(f"{source / CONFIG_FILE} has unknown {', '.join(unknown)}; it was written by another version of mmalign")
    sizes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values["preprocessing"].items()}
    read = {"classes": tuple(values["classes"]), "preprocessing": Preprocessing(**sizes), "mixing": Mixing(**values["mixing"])}
    return DualHeadConfig(**{**values, **read})


def write_config(folder: Path, config: DualHeadConfig) -> None:
    """Write a checkpoint's config in one step."""
    partial = folder / f"{CONFIG_FILE}.partial"
    partial.write_text(json.dumps(dataclasses.asdict(config), indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, folder / CONFIG_FILE)


def load_pretrained_backbone(model: DualHead, source: str) -> None:
    """Fill the backbone: from timm's own weights (``source`` is its architecture), or a tower's checkpoint.

    Raises:
        ValueError: If there are no such weights, or they don't fit.
    """
    with named_errors(source):
        if model.settings.library == "timm":
            start: Any = create_timm(source, pretrained=True, num_classes=0, **model.settings.backbone)
        else:
            start = _Tower(
                _TOWERS[model.settings.architecture].from_pretrained(source, config=_tower_config(model.settings), dtype=torch.float32)
            )
    model.backbone.load_state_dict(start.state_dict())


def read_tower_config(source: str) -> tuple[str, dict[str, Any]]:
    """Read the kind and the config of a CLIP's or SigLIP's vision tower.

    Raises:
        ValueError: If ``source`` has no such tower.
    """
    check_folder(source)
    with named_errors(source):
        config = AutoConfig.from_pretrained(source)
    projection = getattr(config, "projection_dim", None)
    config = getattr(config, "vision_config", config)
    if config.model_type not in _TOWERS:
        raise UserError(f"{source} is a {config.model_type}; expected a vision tower of {', '.join(_TOWERS)}, or a model that has one")
    values = config.to_diff_dict()
    if projection is not None:
        values["projection_dim"] = projection
    return config.model_type, {key: value for key, value in values.items() if key not in ("dtype", "transformers_version")}


@torch.no_grad()
def init_heads_from_text(model: DualHead, text_features: Tensor) -> None:
    """Start the heads at the classes' text embeddings (C, D), unit length, biases 0 (arXiv:2505.07675, language-aware initialisation).

    With the text's own vision tower and a cosine KD head the KD logits are the zero-shot model's.

    Raises:
        ValueError: If a head is an MLP, or the widths differ.
    """
    heads = [head for head in (model.ce_head, model.kd_head) if head is not None]
    for head in heads:
        if not isinstance(head, (nn.Linear, CosineHead)):
            raise UserError("a head that is an MLP can't start from text embeddings; choose linear or cosine")
        if head.weight.shape != text_features.shape:
            raise UserError(
                f"text embeddings are {tuple(text_features.shape)} and the head's weight {tuple(head.weight.shape)}; the text must come "
                "from the student's own CLIP or SigLIP, with the same classes"
            )
        head.weight.copy_(F.normalize(text_features.float(), dim=-1))
        if isinstance(head, nn.Linear):
            head.bias.zero_()


class _Tower(nn.Module):
    """A vision tower whose output is a feature vector: CLIP's projected embedding, SigLIP's pooled one."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.tower(pixel_values=pixels)
        return output.image_embeds if hasattr(output, "image_embeds") else output.pooler_output


def _build_backbone(config: DualHeadConfig) -> nn.Module:
    if config.library == "transformers":
        if config.architecture not in _TOWERS:
            raise UserError(f"architecture is {config.architecture!r}; expected one of {', '.join(_TOWERS)}")
        return _Tower(_TOWERS[config.architecture]._from_config(_tower_config(config)))
    return create_timm(config.architecture, pretrained=False, num_classes=0, **config.backbone)


def create_timm(architecture: str, **options: Any) -> Any:
    """Build a timm model.

    Args:
        architecture: timm's name, hf-hub:OWNER/NAME or local-dir:FOLDER.
        **options: As ``timm.create_model`` takes them.

    Raises:
        ValueError: If there is none of that name, or its files can't be had.
    """
    check_folder(architecture.removeprefix("local-dir:"))
    if Path(architecture).is_dir():
        raise UserError(f"{architecture} is a folder; timm takes a folder as local-dir:{architecture}")
    try:
        with named_errors(architecture):
            return timm.create_model(architecture, **options)
    except RuntimeError as error:
        near = timm.list_models(f"*{architecture.split('_')[0][:6]}*")[:3]
        raise UserError(f"timm has no model {architecture!r}: {error}; near it: {', '.join(near) or 'none'}") from error


def _tower_config(config: DualHeadConfig) -> Any:
    return AutoConfig.for_model(config.architecture, **{key: value for key, value in config.backbone.items() if key != "model_type"})


@torch.no_grad()
def _feature_width(backbone: nn.Module, image_size: int) -> int:
    training = backbone.training
    features = backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    backbone.train(training)
    if features.ndim != 2:
        raise UserError(f"the backbone gives features of shape {tuple(features.shape)}; expected one vector an image")
    return features.shape[1]


def _build_head(kind: HeadKind, width: int, num_classes: int) -> nn.Module:
    if kind == "cosine":
        return CosineHead(width, num_classes)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, num_classes))
    return nn.Linear(width, num_classes)

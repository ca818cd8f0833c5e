"""A classifier with two heads on one backbone (DHO, arXiv:2505.07675): one for labels, one for a teacher; and its checkpoint folder.

Shape legend: B = images, C = classes, D = feature width, H = height, W = width.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.classifier.backbone import build_backbone, find_feature_width
from mmalign.classifier.kernel_head import KernelHead
from mmalign.errors import UserError
from mmalign.files import expected_form, read_json_object, whole, write_whole
from mmalign.losses.classifier import mix_probabilities
from mmalign.models.load import named_errors
from mmalign.options.classifier import HeadKind, Library

CONFIG_FILE, WEIGHTS_FILE = "dual_head.json", "model.safetensors"
BACKBONE_FILE = "backbone.safetensors"
"""The backbone of a student of features, from which another training starts."""
# 1 / 0.01, the paper's zeta.
COSINE_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How both heads' probabilities are mixed, and where the numbers come from."""

    ce_head_weight: float = 0.5
    kd_head_temperature: float = 0.5
    source: str = "published default for 1% and 10% of the labels"

    def mix(self, ce_logits: Tensor, kd_logits: Tensor) -> Tensor:
        """Mix both heads' logits (B, C) to probabilities (B, C)."""
        return mix_probabilities(ce_logits, kd_logits, ce_head_weight=self.ce_head_weight, kd_head_temperature=self.kd_head_temperature)


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
class KernelSettings:
    """What rebuilds a kernel head without its support images."""

    alpha: float
    num_support: int


@dataclass(frozen=True, kw_only=True)
class DualHeadConfig:
    """All that rebuilds the model without its weights."""

    library: Library
    architecture: str
    """As ``build_backbone`` takes it."""
    backbone: dict[str, Any]
    """The architecture's values."""
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    heads: Literal["dual", "single"]
    ce_head: HeadKind | Literal["hilbert"]
    kd_head: HeadKind
    teacher_feature_size: int | None = None
    """Width of the teacher's features, where the student learns to predict them (the feature-distillation baseline)."""
    mixing: Mixing = Mixing()
    kernel: KernelSettings | None = None
    """Of a head that ``classifier fit-head`` made of images."""

    def __post_init__(self) -> None:
        """Check the classes and the kernel."""
        if (self.ce_head == "hilbert") != (self.kernel is not None):
            raise UserError(f"ce_head is {self.ce_head} and kernel {self.kernel}; expected the kernel's settings with hilbert alone")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise UserError(f"classes are {', '.join(self.classes) or 'none'}; expected at least two, all different")


class DualHeadOutput(NamedTuple):
    """The model's output for a batch; with a single head both logits are the same tensor."""

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
        self.backbone = build_backbone(config.library, config.architecture, config.backbone)
        width = find_feature_width(self.backbone, config.preprocessing.image_size)
        self.ce_head = _build_head(config.ce_head, width, len(config.classes), config.kernel)
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
        return self.settings.mixing.mix(output.ce_logits, output.kd_logits)

    def set_mixing(self, mixing: Mixing) -> None:
        """Change how the heads are mixed; saved with the model."""
        self.settings = dataclasses.replace(self.settings, mixing=mixing)

    def replace_head(self, head: nn.Linear | KernelHead) -> None:
        """Take a fitted head as the only one."""
        kernel = KernelSettings(alpha=head.alpha, num_support=len(head.support)) if isinstance(head, KernelHead) else None
        self.settings = dataclasses.replace(self.settings, heads="single", ce_head="hilbert" if kernel else "linear", kernel=kernel)
        self.ce_head, self.kd_head = head, None

    def save_pretrained(self, folder: Path) -> None:
        """Write config and weights."""
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / WEIGHTS_FILE) as partial:
            save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, partial)
        write_config(folder, self.settings)

    def save_backbone(self, folder: Path) -> None:
        """Write the backbone's weights alone, in the form that its library loads."""
        with whole(folder / BACKBONE_FILE) as partial:
            save_file({name: value.detach().cpu().contiguous() for name, value in self.backbone.state_dict().items()}, partial)


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
    """Read a checkpoint's config.

    Raises:
        ValueError: If the file is damaged, or of another form or version.
    """
    values = read_json_object(source / CONFIG_FILE)
    known = {f.name for f in dataclasses.fields(DualHeadConfig)}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserError(f"{source / CONFIG_FILE} has unknown {', '.join(unknown)}; it was written by another version of mmalign")
    with expected_form(source / CONFIG_FILE):
        sizes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values["preprocessing"].items()}
        read: dict[str, Any] = {
            "classes": tuple(values["classes"]),
            "preprocessing": Preprocessing(**sizes),
            "mixing": Mixing(**values["mixing"]),
        }
        if values.get("kernel") is not None:
            read["kernel"] = KernelSettings(**values["kernel"])
        return DualHeadConfig(**{**values, **read})


def write_config(folder: Path, config: DualHeadConfig) -> None:
    """Write a checkpoint's config."""
    write_whole(folder / CONFIG_FILE, json.dumps(dataclasses.asdict(config), indent=1, ensure_ascii=False))


def _build_head(kind: HeadKind | Literal["hilbert"], width: int, num_classes: int, kernel: KernelSettings | None = None) -> nn.Module:
    if kernel is not None:
        return KernelHead(width, num_classes, **dataclasses.asdict(kernel))
    if kind == "cosine":
        return CosineHead(width, num_classes)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, num_classes))
    return nn.Linear(width, num_classes)

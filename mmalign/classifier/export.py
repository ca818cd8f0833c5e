"""A trained classifier as a plain module with one output, for deployment without mmalign.

Shape legend: B = images, C = classes, H = height, W = width.
"""

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.classifier.dual_head import DualHead
from mmalign.errors import UserError
from mmalign.files import whole, write_whole
from mmalign.options.classifier import ExportFormat

# float32 through another runtime's kernels.
TOLERANCE = 1e-4


class MixedClassifier(nn.Module):
    """RGB in [0, 1] (B, 3, H, W) to the mixed probabilities (B, C); normalisation is inside.

    Two linear heads become one matrix of 2C rows, the KD head's temperature folded into its half.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: DualHead) -> None:
        """Take the trained parts."""
        super().__init__()
        preprocessing, mixing = model.settings.preprocessing, model.settings.mixing
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))
        self.backbone = model.backbone
        self.ce_head_weight, self.kd_head_temperature = mixing.ce_head_weight, mixing.kd_head_temperature
        ce_head, kd_head = model.ce_head, model.kd_head
        self.stacked = isinstance(ce_head, nn.Linear) and isinstance(kd_head, nn.Linear)
        self.ce_head: nn.Module = ce_head
        self.kd_head = kd_head
        if isinstance(ce_head, nn.Linear) and isinstance(kd_head, nn.Linear):
            self.ce_head, self.kd_head = _stack(ce_head, kd_head, self.kd_head_temperature), None

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        features = self.backbone((images - self.mean) / self.std)
        if self.stacked:
            from_labels, from_teacher = self.ce_head(features).chunk(2, dim=-1)
        elif self.kd_head is not None:
            from_labels, from_teacher = self.ce_head(features), self.kd_head(features) / self.kd_head_temperature
        else:
            return F.softmax(self.ce_head(features), dim=-1)
        return self.ce_head_weight * F.softmax(from_labels, dim=-1) + (1 - self.ce_head_weight) * F.softmax(from_teacher, dim=-1)


def export_classifier(model: DualHead, path: Path, *, file_format: ExportFormat) -> float:
    """Write the plain classifier with a free batch size, and ``<path>.json`` with classes and preprocessing beside it.

    ``torch`` is a ``torch.export`` program (``torch.export.load(path).module()``), ``onnx`` one file for any ONNX runtime.

    Returns:
        The largest difference between the file's probabilities and the model's, on noise.

    Raises:
        ValueError: If the difference is above the tolerance, or a package for ONNX is missing.
    """
    model = model.cpu().eval()
    plain = MixedClassifier(model).eval()
    size = model.settings.preprocessing.image_size
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.mix(model((images - plain.mean) / plain.std))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        got = _write_onnx(plain, images, partial) if file_format == "onnx" else _write_torch(plain, images, partial)
        difference = (got - expected).abs().max().item()
        if not difference <= TOLERANCE:
            raise UserError(f"{path} would give probabilities that differ by {difference:.2g} from the model's (tolerance {TOLERANCE:g})")
    about: dict[str, Any] = {
        "classes": model.settings.classes,
        "image_size": size,
        "resize_size": model.settings.preprocessing.resize_size,
        "input": "RGB in [0, 1], (batch, 3, height, width); normalisation is inside",
        "output": "probabilities, (batch, classes)",
    }
    write_whole(path.with_name(path.name + ".json"), json.dumps(about, indent=1, ensure_ascii=False))
    return difference


def _write_torch(plain: nn.Module, images: Tensor, path: Path) -> Tensor:
    program = torch.export.export(plain, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    # Not to the file: where the disk is full, PyTorch's writer ends the process.
    saved = io.BytesIO()
    torch.export.save(program, saved)
    path.write_bytes(saved.getbuffer())
    with path.open("rb") as file, torch.no_grad():
        return torch.export.load(file).module()(images)


def _write_onnx(plain: nn.Module, images: Tensor, path: Path) -> Tensor:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; ONNX needs the extra: pip install 'mmalign[onnx]'") from error
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        plain,
        (images,),
        str(path),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _stack(ce_head: nn.Linear, kd_head: nn.Linear, temperature: float) -> nn.Linear:
    stacked = nn.Linear(ce_head.in_features, 2 * ce_head.out_features)
    with torch.no_grad():
        stacked.weight.copy_(torch.cat([ce_head.weight, kd_head.weight / temperature]))
        stacked.bias.copy_(torch.cat([ce_head.bias, kd_head.bias / temperature]))
    return stacked

"""A frozen network whose features are to be predicted from a few images: any timm model, a CLIP's tower, a classifier's backbone.

Shape legend: N = images, B = images of a batch, E = feature width, S = side.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from tqdm import tqdm

from mmalign.classifier.backbone import create_timm, find_feature_width, find_statistics, load_backbone, read_tower_config
from mmalign.classifier.dual_head import Preprocessing, load_dual_head
from mmalign.classifier.image_cache import CachedImages, to_square
from mmalign.classifier.labeled_images import LabeledImages
from mmalign.data.images import load_image
from mmalign.files import whole
from mmalign.options.distill_images import TargetOptions

_BATCH = 256


class FeatureTarget(NamedTuple):
    """A backbone, and how its images are prepared."""

    backbone: nn.Module
    preprocessing: Preprocessing

    @torch.no_grad()
    def __call__(self, squares: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, E) float32."""
        return self.backbone(self.preprocessing.normalize(squares.float() / 255)).float()


def load_target(options: TargetOptions, *, device: torch.device) -> FeatureTarget:
    """Load and freeze the target.

    Raises:
        ValueError: If there is no such network.
    """
    if options.target_kind == "classifier":
        model = load_dual_head(Path(options.target))
        backbone, own = model.backbone, model.settings.preprocessing.image_size
        mean, std = model.settings.preprocessing.mean, model.settings.preprocessing.std
    elif options.target_kind == "timm":
        backbone = create_timm(options.target, options.target_options, pretrained=True, num_classes=0)
        own = resolve_model_data_config(backbone)["input_size"][-1]
        mean, std = find_statistics("timm", options.target, backbone)
    else:
        architecture, values = read_tower_config(options.target)
        tower: Any = load_backbone("transformers", architecture, values, source=options.target)
        backbone, own = tower, tower.tower.config.image_size
        mean, std = find_statistics("transformers", architecture, backbone)
    side = options.target_size or own
    find_feature_width(backbone, side)
    preprocessing = Preprocessing(image_size=side, resize_size=side, mean=mean, std=std)
    return FeatureTarget(backbone.requires_grad_(False).eval().to(device), preprocessing)


def cache_target_features(target: FeatureTarget, data: LabeledImages, images: CachedImages, path: Path, *, device: torch.device) -> Tensor:
    """Read the target's features (N, E) of the good images, in their order; compute them first where they are not yet on disk.

    Each image is decoded at the target's own side, and not upsampled from the stored squares.
    """
    if not path.is_file():
        good, features, squares = set(images.ids), [], []
        kept = [image for image, name in zip(data.images, data.ids, strict=True) if name in good]
        for number, image in enumerate(tqdm(kept, desc="target's features", unit="image", leave=False), start=1):
            squares.append(torch.from_numpy(np.array(to_square(load_image(image, root=data.root), target.preprocessing.image_size))))
            if len(squares) == _BATCH or number == len(kept):
                features.append(target(torch.stack(squares).to(device)).cpu())
                squares = []
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            save_file({"features": torch.cat(features)}, partial)
    return load_file(path)["features"]


def name_target_features(options: TargetOptions, images: CachedImages, *, weights: str) -> str:
    """Name the file of a target's features by all that they depend on; ``weights`` is the hash of the target's files."""
    what = [options.target, options.target_kind, options.target_options, options.target_size, weights, images.fingerprint]
    return f"target-{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]}.safetensors"

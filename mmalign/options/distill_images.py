"""A small set of synthetic images that a network is pre-trained on in place of all images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import UserError
from mmalign.options.base import Options
from mmalign.options.classifier import SetName


@dataclass(frozen=True, kw_only=True)
class TargetOptions(Options):
    """The target, whose features the set stands for."""

    target: str
    """a classifier folder, timm's name, or a CLIP or SigLIP: folder or hub id"""
    target_kind: Literal["timm", "transformers", "classifier"] = "timm"
    """what --target is; its head, if any, is left out"""
    target_options: dict[str, Any] = field(default_factory=dict)
    """timm's keywords: '{pretrained_cfg_overlay: {file: dino.safetensors}}'"""
    target_size: int | None = None
    """side of the images that the target sees; its own if not given"""

    def __post_init__(self) -> None:
        """Refuse keywords of timm for another library."""
        super().__post_init__()
        self.refuse_below(1, "target_size")
        if self.target_options and self.target_kind != "timm":
            raise UserError(f"target_options are for --target-kind timm, and it is {self.target_kind}; leave them out")


@dataclass(frozen=True, kw_only=True)
class PoolOptions(Options):
    """The pool of networks that learn from the set while it is learned."""

    backbone: str = "resnet10t"
    """timm's architecture of the pool's networks, from random weights"""
    backbone_options: dict[str, Any] = field(default_factory=dict)
    """timm's keywords: '{channels: [16, 32, 64, 128], stem_width: 8}'"""
    image_size: int = 32
    """side of the synthetic images"""
    pool_size: int = 10
    """networks that learn the set by turns"""
    online_steps: int = 1000
    """steps that a network learns, one per visit, before a new one takes its place"""
    inner_learning_rate: float = 0.1
    """of a network's SGD with momentum 0.9 and weight decay 1e-3"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "image_size", "pool_size", "online_steps")
        self.refuse_below(0, "inner_learning_rate")


@dataclass(frozen=True, kw_only=True)
class DistillImagesOptions(TargetOptions, PoolOptions):
    """Options of ``mmalign classifier distill-images``."""

    data: Path
    """images, as classifier train takes them, or without classes: those are not learned from"""
    set: SetName | None = None
    """one of CoOp's ten fine-grained sets below --data"""
    out: Path
    """folder of the set; run the same command again to resume after a stop"""
    num_images: int = 100
    """synthetic images"""
    steps: int = 2000
    """outer steps; 0 keeps the real images that the set begins as: the control"""
    batch_size: int = 256
    """real images per outer step"""
    learning_rate: float = 1e-3
    """of AdamW on images and features, falling linearly to 0"""
    save_steps: int = 200
    """steps between checkpoints"""
    logging_steps: int = 50
    """steps whose mean loss is a line of the log"""
    cache: Path | None = None
    """folder of decoded images and the target's features; OUT/cache if not given"""
    max_reject_share: float = 0.05
    """stop if more than this share of images is broken"""
    seed: int = 0
    """of the images that the set begins as, batches and networks"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(2, "num_images")
        self.refuse_below(1, "batch_size", "save_steps", "logging_steps")
        self.refuse_below(0, "steps", "learning_rate")

    @property
    def cache_folder(self) -> Path:
        """Where decoded images and the target's features are kept."""
        return self.cache or self.out / "cache"

"""What a world is made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmalign.errors import UserError
from mmalign.options.base import Options

SHARES = ("caption_noise", "existence_noise", "easy_share", "label_noise")


@dataclass(frozen=True, kw_only=True)
class WorldOptions(Options):
    """Options of ``mmalign world build``."""

    out: Path
    """folder of the world"""
    source: Literal["shapes", "photos"] = "shapes"
    """drawn shapes, or mosaics of labelled photos"""
    photos: Path | None = None
    """parquet with columns image and label (a ClassLabel), for --source photos"""
    num_scenes: int = 20_000
    """scenes to fine-tune on"""
    num_pairs: int = 4_000
    """preference pairs, one per scene"""
    num_eval_scenes: int = 200
    """held-out scenes"""
    num_contrast: int = 0
    """pairs of scenes that differ in one object, to train on; 0 writes none, more also writes --num-eval-scenes held-out ones"""
    num_drawings: int = 0
    """captions with their drawing, pairs and lists of drawings with faults, as many of each; 0 writes none, more also writes
    --num-eval-scenes held-out captions"""
    seed: int = 0
    """the same seed gives the same bytes"""
    image_size: int = 48
    """side of the images in pixels"""
    max_objects: int = 4
    """most objects in a scene, at most 4: one per quarter of the image"""
    caption_noise: float = 0.8
    """share of training captions that name a likely but absent object"""
    existence_noise: float = 0.15
    """share of questions after a likely absent object answered Yes"""
    easy_share: float = 0.8
    """share of pairs whose rejected answer is wrong in an easy way"""
    label_noise: float = 0.0
    """share of pairs with chosen and rejected exchanged"""
    num_workers: int = 2
    """processes that draw; the bytes don't depend on it"""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: With the option, its value and what is expected.
        """
        super().__post_init__()
        for name in SHARES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}; expected a share in [0, 1]")
        self.refuse_below(1, "num_scenes", "num_pairs", "num_eval_scenes", "num_workers")
        self.refuse_below(0, "num_contrast", "num_drawings")
        if not 1 <= self.max_objects <= 4:
            raise UserError(f"max_objects is {self.max_objects}; expected 1 to 4, one for each quarter of the image")
        if self.image_size < 24:
            raise UserError(f"image_size is {self.image_size}; expected at least 24 pixels, or shapes can't be told apart")
        if (self.source == "photos") != (self.photos is not None):
            raise UserError("--source photos and --photos FILE go together; give both or neither")
        if self.num_drawings and self.source == "photos":
            raise UserError(f"num_drawings is {self.num_drawings}, and photos are not drawn; leave --source photos or --num-drawings out")

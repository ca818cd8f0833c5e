"""What the study of small sets compares: what a network is pre-trained on, by seed."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from mmalign.options.classifier import Augmentation
from scripts.studies.study import ArmCell

SEEDS = (0, 1, 2, 3, 4)
NUM_IMAGES = 100
LABELS = {"1%": 0.01, "10%": 0.1}


@dataclass(frozen=True)
class Arm:
    """What a network is pre-trained on."""

    name: str
    images: Literal["", "random", "distilled", "all"]
    """Nothing; real images; the set that was learned from these very images; all real images. Each with the target's features."""
    views: Augmentation = "none"


ARMS = (
    Arm("no pre-training", ""),
    Arm("100 real images", "random"),
    Arm("100 distilled images", "distilled"),
    Arm("all 10,000 images", "all"),
    Arm("100 real images, views", "random", "pad-crop"),
    Arm("100 distilled images, views", "distilled", "pad-crop"),
)
OTHERS = {
    "100 distilled images": ("100 real images", "no pre-training"),
    "100 real images": ("no pre-training",),
    "all 10,000 images": ("no pre-training",),
    "100 distilled images, views": ("100 real images, views",),
}
"""Arm -> those that it is compared with."""


Cell = ArmCell[Arm]
"""The seed is of the images drawn, of all weights, and of the labels."""


class Steps(NamedTuple):
    """Steps of each kind of training."""

    distill: int
    online: int
    pretrain: int
    tune: int


def count_steps(*, smoke: bool) -> Steps:
    """Count the steps; the quick form has fewer seeds, not fewer steps."""
    return Steps(2, 1, 2, 2) if smoke else Steps(300, 60, 200, 200)


def list_cells(*, quick: bool, smoke: bool) -> list[Cell]:
    """List the cells, seed by seed: without views first, with views when all seeds have run."""
    seeds = SEEDS[:1] if quick or smoke else SEEDS
    return [Cell(arm, seed) for views in ("none", "pad-crop") for seed in seeds for arm in ARMS if arm.views == views]

"""What the study of two heads on photographs compares: image sets, students, label counts and forms; a cell is one training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scripts.real.cells import cells_folder


class Images(NamedTuple):
    """A set of labelled photographs."""

    title: str
    size: int
    """Side of what teacher and students are given."""
    augmentation: str
    validation_share: float
    labels: tuple[str, ...]


class Student(NamedTuple):
    """A network."""

    title: str
    backbone: str
    learning_rate: str
    pretrained: bool


COCO = "coco"
DHO = "dho"
"""Folder of the study in the main run's."""
TEACHER = "teacher"
"""Of a run's numbers: the teacher's accuracy on test images."""
IMAGES = {
    "cifar10": Images("CIFAR-10", 64, "pad-crop", 0.04, ("1%", "10%", "4 shots", "1 shot", "16 shots")),
    COCO: Images("COCO, photographs with one object", 96, "random-resized-crop", 0.15, ("10%", "4 shots", "1 shot")),
}
STUDENTS = {
    "lite0": Student("EfficientNet-Lite0, pretrained", "tf_efficientnet_lite0", "5e-4", pretrained=True),
    "resnet10t": Student("ResNet-10-t, random weights", "resnet10t", "2e-3", pretrained=False),
}
LABELS = {"1 shot": "--shots 1", "4 shots": "--shots 4", "16 shots": "--shots 16", "1%": "--label-share 0.01", "10%": "--label-share 0.1"}
"""The fewest first."""
FORMS = {"dual-head": "DHO, tuned mixing", "single-head": "single head, w = 0.5", "ce-only": "CE only", "kd-only": "KD only"}
SINGLE = tuple(form for form in FORMS if form != "dual-head")
SEEDS, QUICK_SEEDS = (0, 1, 2, 3, 4), (0,)


@dataclass(frozen=True)
class Cell:
    """One training."""

    images: str
    student: str
    labels: str
    form: str
    seed: int

    @property
    def name(self) -> str:
        """File name, by which seeds of the same training are found."""
        return f"{self.images}_{self.student}_{self.labels}_{self.form}".replace(" ", "-").replace("%", "pc")

    def path(self, out: Path) -> Path:
        """The file of the finished training."""
        return cells_folder(out, DHO) / str(self.seed) / f"{self.name}.json"


def list_cells(images: Sequence[str], seeds: Sequence[int], *, smoke: bool = False) -> list[Cell]:
    """List the trainings, seed by seed; the smoke form has one with both heads."""
    if smoke:
        return [Cell(COCO, "lite0", "10%", "dual-head", seeds[0])]
    return [
        Cell(one, student, labels, form, seed)
        for seed in seeds
        for one in images
        for student in STUDENTS
        for labels in IMAGES[one].labels
        for form in FORMS
    ]

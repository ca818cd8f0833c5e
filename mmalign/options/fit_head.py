"""A classifier's head in closed form, without training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmalign.errors import UserError
from mmalign.options.classifier import ClassifierRunOptions

Kernel = Literal["hilbert", "ridge"]
LabelSource = Literal["true", "teacher", "both"]


@dataclass(frozen=True, kw_only=True)
class FitHeadOptions(ClassifierRunOptions):
    """Options of ``mmalign classifier fit-head``."""

    out: Path
    """folder of the classifier; the same command writes the same again"""
    kernel: Kernel = "hilbert"
    """hilbert: |x - x'|^-alpha on the sphere of features; ridge: regression on class probabilities"""
    labels: LabelSource = "true"
    """labelled images, the teacher's probabilities of unlabelled ones, or both"""
    label_weight: float = 0.5
    """both: weight of all labelled images together; the teacher's have the rest"""
    alpha: float | None = None
    """hilbert: order of the singularity; chosen from 1/2 to 16 if not given"""
    penalty: float | None = None
    """ridge: penalty of the weights as a share of the features' variance; chosen from 1e-5 to 1 if not given"""
    classifier: Path | None = None
    """classifier folder whose backbone is taken, with its preprocessing, instead of --backbone"""
    seed: int = 0
    """of the random weights of --no-pretrained"""

    def __post_init__(self) -> None:
        """Refuse what the chosen kernel, labels or backbone have no use for."""
        super().__post_init__()
        if (self.labels == "true") != (self.teacher is None):
            what = "has no use for --teacher; leave it out" if self.labels == "true" else "needs --teacher"
            raise UserError(f"labels {self.labels} {what}")
        if self.labels == "both" and not 0 < self.label_weight < 1:
            raise UserError(f"label_weight is {self.label_weight}; expected a share between 0 and 1, or --labels true or teacher")
        for name, kernel in (("alpha", "hilbert"), ("penalty", "ridge")):
            value = getattr(self, name)
            if value is not None and self.kernel != kernel:
                raise UserError(f"{name} is {value} and the kernel {self.kernel}; --{name} is for --kernel {kernel}")
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} is {value}; expected a positive number")

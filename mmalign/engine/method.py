"""What a method is to the trainer: rows to a batch, a batch to a loss and metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Sum:
    """A metric before it is averaged: sums and counts add up exactly over micro-batches and processes; means don't."""

    total: Tensor
    count: Tensor | float


@dataclass(frozen=True)
class MethodOutput:
    """The outcome of one batch."""

    loss_sum: Tensor
    """Scalar, summed over the batch's items; the trainer divides by the items of the whole step."""
    metrics: dict[str, Sum] = field(default_factory=dict)
    """By ``group/name``. A method gives the same keys for every batch."""


class Method(Protocol):
    """An objective with its data."""

    @property
    def name(self) -> str:
        """What ``mmalign train`` calls it."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns that its rows must have."""

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Raise ValueError with the reason if this row can't be trained on."""

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Look at the model once before training, on its device, with a few checked rows; return a line for the log."""

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of checked rows."""

    def num_items(self, batch: dict[str, Any]) -> int:
        """Count what the loss is averaged over: tokens or pairs."""

    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Run the model and return the loss."""

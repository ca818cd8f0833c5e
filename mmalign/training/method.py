"""What a method is to the trainer: rows to a batch, a batch to a loss and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback

from mmalign.engine.probe import PROBED_ROWS


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


@dataclass(frozen=True)
class Selection:
    """The rows to train on, and what was done to get them."""

    dataset: Dataset
    counts: dict[str, Any] = field(default_factory=dict)
    """For the run's record; empty where nothing was asked for."""
    notes: tuple[str, ...] = ()
    """The same in words."""


@dataclass(frozen=True)
class Apart:
    """Weights that train as if there were no others: their gradients are scaled down by their own norm."""

    parameters: Sequence[nn.Parameter]
    option: str
    """What asks for it, for errors."""
    learning_rate_scale: float = 1.0
    """Their share of the peak learning rate, under the schedule of all."""


class Method(ABC):
    """An objective with its data. What a method does not define is as it stands here."""

    name: ClassVar[str]
    """What ``mmalign train`` calls it."""
    summary: ClassVar[str]
    """What it makes, as the card's first sentence ends."""
    intended_use: ClassVar[str]
    """What the card says that the model is for."""
    columns: Sequence[str] = ()
    """Columns that its rows must have."""
    start_rows: int = PROBED_ROWS
    """Rows that ``start`` is shown."""
    passes: int = 1
    """Steps on the rows of each step, one after the other."""
    num_buckets: int | None = None
    """Go through the rows in their order, shuffled within this many buckets per epoch; None: shuffled."""

    @classmethod
    def build(cls, options: Any) -> tuple[nn.Module, Any, "Method"]:
        """Load the model to train and its processor, and make the method, from the options of its command."""
        raise NotImplementedError(f"{cls.__name__} has no command")

    @classmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        """Say what else the summary tells of a run with these options, as its record holds them."""
        return ""

    def check_dataset(self, dataset: Dataset) -> None:
        """Check columns as a whole, before any row is looked at: checking all rows may take hours. Raise UserError with the reason."""
        return

    def check(self, raw: Mapping[str, Any], *, index: int) -> None:
        """Raise UserError with the reason if this row can't be trained on."""
        return

    def check_inputs(self) -> Mapping[str, Any] | None:
        """Name all that ``check`` depends on beside the row and its image files, so that its verdicts can be kept; None: they are not."""
        return None

    def select(self, dataset: Dataset) -> Selection:
        """Choose and order checked rows."""
        return Selection(dataset)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Add the columns that depend on all rows that are trained on."""
        return dataset

    def apart(self, model: nn.Module) -> Sequence[Apart]:
        """Sets of weights that train apart from each other; none where all train together. ``model`` is the bare one."""
        return []

    def callbacks(self, checkpoint: Path | None) -> list[TrainerCallback]:
        """What else happens at steps and checkpoints; ``checkpoint`` is where training resumes from."""
        return []

    def start(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Look at the model once before training, on its device, with a few checked rows; return a line for the log."""
        return None

    @abstractmethod
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of checked rows; this may run in another process than training."""

    def complete(self, model: nn.Module, batch: dict[str, Any], *, step: int) -> dict[str, Any]:
        """Add what only the model in training can: answers that it gives. Asked in the training process, before items are counted.

        Args:
            model: Possibly wrapped.
            batch: From ``collate``.
            step: Number of the optimiser's step.
        """
        return batch

    @abstractmethod
    def num_items(self, batch: dict[str, Any]) -> int:
        """Count what the loss is averaged over: tokens or pairs."""

    @abstractmethod
    def compute(self, model: nn.Module, batch: dict[str, Any]) -> MethodOutput:
        """Run the model and return the loss."""

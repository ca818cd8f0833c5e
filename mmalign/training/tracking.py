"""Trackers that show a run while it trains: TensorBoard, Weights & Biases, Trackio. The run's own files are the same without one.

Metrics keep the names of ``train_log.json``; transformers' own callbacks would put them all under ``train/``.
"""

import importlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from transformers import TrainerCallback

from mmalign.errors import UserError
from mmalign.options.training import TrackerName, TrainerOptions

COLUMNS = ("image", "question", "response", "expected", "right")
_EVAL = "eval/"
_SIDE = 256


@dataclass(frozen=True)
class Sample:
    """An answer of the model in training, as a row of a table."""

    image: Image.Image | None
    question: str
    response: str
    expected: str
    correct: bool | None
    """None where the benchmark doesn't say so of a single answer."""

    def texts(self) -> list[str]:
        """Its columns but the image."""
        return [self.question, self.response, self.expected, {True: "yes", False: "no", None: ""}[self.correct]]


ReadSamples = Callable[[str, int], Sequence[Sample]]
"""From a benchmark and a step to answers."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run: its folder, the project it belongs to, its settings, and the step that it resumes after."""

    folder: Path
    project: str
    settings: Mapping[str, Any]
    first_step: int

    @property
    def id(self) -> str:
        """Of the folder: a resumed run goes on in its own record."""
        return f"{self.folder.name}-{zlib.crc32(str(self.folder.resolve()).encode()):08x}"


class Tracker(Protocol):
    """An open record of a run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add numbers."""

    def show(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Add a table of answers."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in OUT/tensorboard."""

    def __init__(self, run: TrackedRun) -> None:
        """Begin; what a killed run wrote behind its last checkpoint is struck out."""
        self._writer = _load("tensorboard").SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=run.first_step + 1 if run.first_step else None
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def show(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Add the table as text, and the images in its order."""
        rows = [["", *COLUMNS[1:]], ["---"] * len(COLUMNS), *([str(number), *one.texts()] for number, one in enumerate(samples))]
        lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
        self._writer.add_text(name, "\n".join(lines), step)
        for number, one in enumerate(samples):
            if one.image is not None:
                self._writer.add_image(f"{name}/{number}", np.asarray(one.image), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; ``WANDB_MODE=offline`` keeps it on this machine."""

    def __init__(self, run: TrackedRun) -> None:
        """Begin, or go on with the folder's run."""
        self._wandb = _load("wandb")
        self._run = self._wandb.init(
            project=run.project, name=run.folder.name, id=run.id, resume="allow", dir=str(run.folder), config=dict(run.settings)
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add scalars."""
        self._run.log(dict(metrics), step=step)

    def show(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Add a table."""
        rows = [[one.image and self._wandb.Image(one.image), *one.texts()] for one in samples]
        self._run.log({name: self._wandb.Table(columns=list(COLUMNS), data=rows)}, step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class Trackio:
    """A run of Trackio, in its own data base (``TRACKIO_DIR``) or in a Space that its environment variables name."""

    def __init__(self, run: TrackedRun) -> None:
        """Begin, or go on with the folder's run."""
        self._trackio = _load("trackio")
        self._trackio.init(project=run.project, name=run.id, resume="allow", config=dict(run.settings), embed=False)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add scalars."""
        self._trackio.log(dict(metrics), step=step)

    def show(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Add a table."""
        rows = [[one.image and self._trackio.Image(one.image), *one.texts()] for one in samples]
        self._trackio.log({name: self._trackio.Table(columns=list(COLUMNS), data=rows)}, step=step)

    def close(self) -> None:
        """Write what is left."""
        self._trackio.finish()


TRACKERS: Mapping[TrackerName, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def _load(package: TrackerName) -> Any:
    """Import what a tracker needs.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return importlib.import_module("torch.utils.tensorboard" if package == "tensorboard" else package)
    except ImportError as error:
        raise UserError(f"--log-to {package} needs the package {package} ({error}); pip install 'mmalign[{package}]'") from error


def build_tracking(
    options: TrainerOptions, out: Path, settings: Mapping[str, Any], samples: ReadSamples | None = None
) -> list[TrainerCallback]:
    """The callback of ``--log-to``; none without it."""
    return [TrackingCallback(options.log_to, out, options.log_project, settings, samples)] if options.log_to else []


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse trackers that are not installed, before hours of work.

    Raises:
        UserError: With the package.
    """
    for name in names:
        _load(name)


@dataclass
class TrackingCallback(TrainerCallback):
    """Sends the logs of the main process to trackers, and a table of answers where benchmarks were scored."""

    names: Sequence[TrackerName]
    folder: Path
    project: str
    settings: Mapping[str, Any]
    samples: ReadSamples | None = None
    _open: list[Tracker] = field(default_factory=list)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the trackers."""
        if state.is_world_process_zero:
            run = TrackedRun(self.folder, self.project, self.settings, state.global_step)
            self._open = [TRACKERS[name](run) for name in self.names]

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **kwargs: Any) -> None:
        """Send what was logged."""
        metrics = {key: float(value) for key, value in logs.items() if isinstance(value, (int, float))}
        scored = dict.fromkeys(key.split("/")[1] for key in metrics if key.startswith(_EVAL))
        tables = {name: self.samples(name, state.global_step) for name in scored} if self.samples and self._open else {}
        for tracker in self._open:
            tracker.log(metrics, state.global_step)
            for name, samples in tables.items():
                tracker.show(f"samples/{name}", samples, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the trackers."""
        for tracker in self._open:
            tracker.close()
        self._open = []


def small(image: Image.Image) -> Image.Image:
    """An image as it is shown in a table: a copy of what ``load_image`` gives."""
    shown = image.copy()
    shown.thumbnail((_SIDE, _SIDE))
    return shown

"""The commands as functions: arguments are the options of the command, data sets and models may be in memory, results are returned.

A ``datasets.Dataset`` stands where a file would, ``(model, processor)`` where a checkpoint would. Errors name options as the command line
does: ``--lora-rank`` is ``lora_rank``.
"""

import functools
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import nn

from mmalign.config import build_options
from mmalign.data.datasets import hash_rows
from mmalign.errors import UserError
from mmalign.evaluation.results import Result
from mmalign.held import PREFIX, holding
from mmalign.models.fingerprint import hash_processor
from mmalign.models.held import HeldModel, hash_weights
from mmalign.options.classifier import TrainClassifierOptions
from mmalign.options.denoisers import ImagePreferenceOptions, TrainDenoiserOptions
from mmalign.options.difficulty import ScoreOptions
from mmalign.options.evaluate import EvaluateOptions
from mmalign.options.methods import (
    ContrastiveOptions,
    ListwiseOptions,
    MimicOptions,
    OnlineOptions,
    PreferenceOptions,
    RewardOptions,
    SftOptions,
)
from mmalign.options.models import UpcycleOptions
from mmalign.runs import answering, classifier, denoisers, difficulty, training
from mmalign.runs import upcycle as upcycling
from mmalign.runs.classifier import TrainedClassifier
from mmalign.runs.difficulty import ScoredPairs
from mmalign.runs.training import TrainedRun
from mmalign.runs.upcycle import Upcycled

Options = TypeVar("Options")
Made = TypeVar("Made")


def _takes(options_class: type[Options]) -> Callable[[Callable[[Options], Made]], Callable[..., Made]]:
    """Give a function the fields of its options as keyword arguments."""

    def decorate(run: Callable[[Options], Made]) -> Callable[..., Made]:
        @functools.wraps(run)
        def call(**given: Any) -> Made:
            held: dict[str, Any] = {}
            named = {name: _name(value, held, option=name) for name, value in given.items()}
            with holding(held):
                return run(build_options(options_class, named))

        returned = inspect.signature(run).return_annotation
        vars(call)["__signature__"] = inspect.signature(options_class).replace(return_annotation=returned)
        return call

    return decorate


def _name(value: Any, held: dict[str, Any], *, option: str) -> Any:
    """Name what is in memory, and note it under its name; anything else stays as it is.

    Raises:
        UserError: If it is a model without a processor or one that another option has, or a data set that is not one split in memory.
    """
    if isinstance(value, Dataset):
        name = f"{PREFIX}Dataset-{hash_rows(value)[:12]}"
        held[name] = value
        return name
    if isinstance(value, (DatasetDict, IterableDataset, IterableDatasetDict)):
        raise UserError(f"{option} is a {type(value).__name__}; expected a datasets.Dataset: one split, in memory or mapped from disk")
    if isinstance(value, nn.Module):
        raise UserError(f"{option} is a {type(value).__name__} alone; expected the model and its processor: {option}=(model, processor)")
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], nn.Module):
        return _name_model(*value, held, option=option)
    return [_name(item, held, option=option) for item in value] if isinstance(value, list) else value


def _name_model(model: Any, processor: Any, held: dict[str, Any], *, option: str) -> str:
    if any(isinstance(other, HeldModel) and other.model is model for other in held.values()):
        raise UserError(f"{option} is the same object as another option's model; give it a copy of its own, or the folder")
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        found = HeldModel(model, processor, hash_weights(model), hash_processor(Path(folder)))
    # A copy has the same weights, and is another model.
    name = found.name if found.name not in held else f"{found.name}.{option}"
    held[name] = found
    return name


@_takes(ScoreOptions)
def score_difficulty(options: ScoreOptions) -> ScoredPairs | None:
    """Score how difficult preference pairs are (``mmalign score-difficulty``)."""
    return difficulty.run_score(options)


@_takes(PreferenceOptions)
def train_preference(options: PreferenceOptions) -> TrainedRun:
    """Train on preference pairs with DPO and its family (``mmalign train preference``). A model in memory is changed in place."""
    return training.run(options)


@_takes(ListwiseOptions)
def train_listwise(options: ListwiseOptions) -> TrainedRun:
    """Train on lists of scored responses (``mmalign train listwise``). A model in memory is changed in place."""
    return training.run(options)


@_takes(SftOptions)
def train_sft(options: SftOptions) -> TrainedRun:
    """Fine-tune on chats about images (``mmalign train sft``). A model in memory is changed in place."""
    return training.run(options)


@_takes(MimicOptions)
def train_mimic(options: MimicOptions) -> TrainedRun:
    """Distil a teacher into a student on chats (``mmalign train mimic``). A student in memory is changed in place."""
    return training.run(options)


@_takes(OnlineOptions)
def train_online(options: OnlineOptions) -> TrainedRun:
    """Learn from rewards of the policy's own answers (``mmalign train online``). A model in memory is changed in place."""
    return training.run(options)


@_takes(RewardOptions)
def train_reward(options: RewardOptions) -> TrainedRun:
    """Train a reward model on pairs or lists (``mmalign train reward``). A model in memory is changed in place."""
    return training.run(options)


@_takes(ContrastiveOptions)
def train_contrastive(options: ContrastiveOptions) -> TrainedRun:
    """Train an image-text scorer, a CLIP, on images and texts (``mmalign train contrastive``). A model in memory is changed in place."""
    return training.run(options)


@_takes(TrainDenoiserOptions)
def train_denoiser(options: TrainDenoiserOptions) -> TrainedRun:
    """Train a text-to-image pipeline on pictures with captions (``mmalign train denoiser``)."""
    return denoisers.run(options)


@_takes(ImagePreferenceOptions)
def train_image_preference(options: ImagePreferenceOptions) -> TrainedRun:
    """Train a text-to-image pipeline on pairs or lists of pictures (``mmalign train image-preference``)."""
    return denoisers.run(options)


@_takes(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> Result:
    """Measure hallucination on a benchmark (``mmalign evaluate``)."""
    return answering.run(options)


@_takes(UpcycleOptions)
def upcycle(options: UpcycleOptions) -> Upcycled:
    """Turn a dense model into a mixture of experts that computes the same (``mmalign upcycle``)."""
    return upcycling.run(options)


@_takes(TrainClassifierOptions)
def train_classifier(options: TrainClassifierOptions) -> TrainedClassifier | None:
    """Distil a vision-language teacher into a classifier from few labels (``mmalign classifier train``)."""
    return classifier.run_train(options)

"""What the options of a training run are to ``transformers.TrainingArguments``."""

import contextlib
import dataclasses
import os
import types
import typing
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_torch_bf16_gpu_available

from mmalign.data.workers import count_cores
from mmalign.errors import UserError
from mmalign.options.training import TrainerOptions
from mmalign.training.tracking import check_trackers

_NO_EVAL_SET = "no evaluation set is given to transformers.Trainer; --eval-benchmarks and --eval-every score the model in training"
# Fields that transformers.Trainer takes and that change nothing here, or break what stands here instead of them: why, and what to do.
_VOID = {
    "label_smoothing_factor": "the loss is the method's own; the objectives cdpo and rdpo have a label_smoothing",
    "average_tokens_across_devices": "a step's items are always counted over all devices",
    "remove_unused_columns": "it would take the columns away that the method reads",
    "resume_from_checkpoint": "the newest whole checkpoint in OUT is taken: give the same command again",
    "save_only_model": "a stopped run would go on with a new optimiser, and end otherwise; fewer checkpoints: --save-total-limit 1",
    "ignore_data_skip": "a stopped run would go on with other rows, and end otherwise",
    "output_dir": "checkpoints lie in OUT/checkpoints: set --out",
    "label_names": _NO_EVAL_SET,
    "include_for_metrics": _NO_EVAL_SET,
    "batch_eval_metrics": _NO_EVAL_SET,
    "prediction_loss_only": _NO_EVAL_SET,
    "per_device_eval_batch_size": _NO_EVAL_SET,
    "do_eval": _NO_EVAL_SET,
    "do_predict": _NO_EVAL_SET,
    "eval_strategy": _NO_EVAL_SET,
    "eval_steps": _NO_EVAL_SET,
    "eval_delay": _NO_EVAL_SET,
    "eval_on_start": _NO_EVAL_SET,
    "eval_accumulation_steps": _NO_EVAL_SET,
    "eval_do_concat_batches": _NO_EVAL_SET,
    "eval_use_gather_object": _NO_EVAL_SET,
    "load_best_model_at_end": _NO_EVAL_SET,
    "metric_for_best_model": _NO_EVAL_SET,
    "greater_is_better": _NO_EVAL_SET,
}
# Fields that options set, whose values the optimisers, the log and the card take from there.
_OPTIONS = {
    "learning_rate": "--learning-rate",
    "per_device_train_batch_size": "--batch-size",
    "gradient_accumulation_steps": "--gradient-accumulation-steps",
    "max_steps": "--max-steps",
    "weight_decay": "--weight-decay",
    "adam_beta2": "--adam-beta2",
    "seed": "--seed",
}
_KINDS = {bool, int, float, str, dict, list, types.NoneType}
# Void where --optimizer builds another one than the trainer's.
_ADAMW_ALONE = ("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_epsilon")


def build_training_arguments(options: TrainerOptions, *, output_dir: Path) -> TrainingArguments:
    """Translate the options.

    Args:
        options: The run's options.
        output_dir: Folder of the checkpoints.

    Raises:
        ValueError: If ``trainer`` names a field that TrainingArguments doesn't have or that would change nothing, or launched processes
            did not find each other.
    """
    check_trainer(options)
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "num_train_epochs": options.epochs,
        "max_steps": options.max_steps,
        "lr_scheduler_type": options.schedule,
        "warmup_steps": options.warmup_ratio,  # below 1 it is a share of the steps
        "weight_decay": options.weight_decay,
        "adam_beta2": options.adam_beta2,
        "max_grad_norm": options.max_grad_norm,
        "bf16": options.precision == "bfloat16" or (options.precision == "auto" and is_torch_bf16_gpu_available()),
        "fp16": options.precision == "float16",
        "activation_checkpointing": options.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if options.gradient_checkpointing else None,
        # A process whose rows have no images does not run the projector; Trainer would not look for it under gradient checkpointing.
        "ddp_find_unused_parameters": True,
        "logging_steps": options.logging_steps,
        "save_steps": options.save_steps,
        "save_total_limit": options.save_total_limit,
        "dataloader_num_workers": _free_cores() if options.num_workers is None else options.num_workers,
        "seed": options.seed,
        "data_seed": options.seed,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "remove_unused_columns": False,
        "report_to": "none",
        # Launched processes don't find each other on a machine without accelerator unless told that the CPU is meant.
        "use_cpu": not torch.accelerator.is_available(),
        **options.trainer,
    }
    with refused_fields(f"trainer is {options.trainer}, which transformers.TrainingArguments"):
        arguments = TrainingArguments(**values)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.world_size != launched:
        raise UserError(
            f"{launched} processes were launched and this one knows of {arguments.world_size}: each would train alone; "
            "see the launch configs in scripts/accelerate"
        )
    return arguments


@contextlib.contextmanager
def refused_fields(what: str) -> Iterator[None]:
    """Tell what transformers finds wrong with fields of ``trainer`` where it reads them, and what packages they need.

    Not a RuntimeError: that is what a device says that is out of memory.
    """
    try:
        yield
    except UserError:
        raise
    except (ImportError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{what} refuses: {error}") from error


def _free_cores(most: int = 4) -> int:
    """Count the processes that can load data while this one computes; on the CPU the computation has every core."""
    return min(most, count_cores() - 1) if torch.accelerator.is_available() else 0


def check_trainer(options: TrainerOptions) -> None:
    """Refuse fields of ``trainer`` that are unknown, or that a user would set in vain, and trackers that are not installed.

    Raises:
        ValueError: With the field, its value and the reason.
    """
    check_trackers(options.log_to)
    known = {f.name: f for f in dataclasses.fields(TrainingArguments)}
    hints = typing.get_type_hints(TrainingArguments)
    for name, value in options.trainer.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"trainer.{name} is no field of transformers.TrainingArguments{hint}")
        reason = _VOID.get(name)
        if name in _ADAMW_ALONE and options.optimizer != "adamw":
            reason = f"--optimizer {options.optimizer} takes none of transformers' own settings of an optimiser"
        if name == "neftune_noise_alpha" and hasattr(options, "reference"):
            reason = "the reference's embeddings would get noise too, and the margin would be one of noise"
        if reason is not None and value != _default(known[name]):
            raise UserError(f"trainer.{name} is {value!r}, and would not do here what it says: {reason}; leave it out")
        if name in _OPTIONS:
            raise UserError(f"trainer.{name} is {value!r}, and has an option of its own: set {_OPTIONS[name]}")
        _check_value(value, known[name], hints[name])
    _check_reports(options.trainer.get("report_to"))


def _check_reports(names: Any) -> None:
    """Make what ``report_to`` names, which looks for its package."""
    try:
        for integration in get_reporting_integration_callbacks(names):
            integration()
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"trainer.report_to is {names!r}, which transformers.Trainer refuses: {error}") from error


def _check_value(value: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    choices = field.metadata.get("choices")
    if not _fits(value, hint):
        raise UserError(f"trainer.{field.name} is {value!r}; expected {getattr(hint, '__name__', hint)}")
    if choices and value is not None and value not in choices:
        raise UserError(f"trainer.{field.name} is {value!r}; expected one of {', '.join(choices)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type, where that is a number, true and false, a list or a mapping: transformers looks at few."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    kinds = {typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if union else (hint,))}
    if not kinds <= _KINDS or (str in kinds and not kinds & {dict, list}):
        return True
    return type(value) in kinds or (float in kinds and type(value) is int)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.name == "remove_unused_columns":
        # Not transformers' own: see build_training_arguments.
        return False
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()

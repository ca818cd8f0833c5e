"""The options of a training run, and what they are to ``transformers.TrainingArguments``."""

import dataclasses
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from transformers import TrainingArguments


@dataclass(frozen=True)
class TrainConfig:
    """Options that every method shares. Everything else of TrainingArguments is reached through ``trainer``."""

    learning_rate: float
    batch_size: int = field(default=8, metadata={"help": "rows a device and micro-batch"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "micro-batches a step"})
    epochs: float = field(default=1.0, metadata={"help": "passes over the data; max-steps wins where it is set"})
    max_steps: int = field(default=-1, metadata={"help": "optimiser steps; -1 trains by epochs"})
    schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata={"help": "learning rate after the warm-up"}
    )
    warmup_ratio: float = field(default=0.03, metadata={"help": "share of the steps over which the learning rate rises"})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are scaled down to this norm"})
    precision: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "autocast type of the forward pass"}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute activations: less memory, a third more time"})
    logging_steps: int = field(default=10, metadata={"help": "steps between logs"})
    save_steps: int = field(default=500, metadata={"help": "steps between checkpoints"})
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints kept"})
    num_workers: int = field(default=0, metadata={"help": "processes that load data"})
    seed: int = field(default=0, metadata={"help": "of the data order, dropout and new weights"})
    trainer: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "any other field of transformers.TrainingArguments (YAML only)"}
    )


def build_training_arguments(config: TrainConfig, *, output_dir: Path) -> TrainingArguments:
    """Translate the options.

    Args:
        config: The run's options.
        output_dir: Folder of the checkpoints.

    Raises:
        ValueError: If ``trainer`` names a field that TrainingArguments doesn't have.
    """
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    for name in config.trainer:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"trainer.{name} is no field of transformers.TrainingArguments{hint}")
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_ratio,  # below 1 it is a share of the steps
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.precision == "bfloat16",
        "fp16": config.precision == "float16",
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if config.gradient_checkpointing else None,
        "logging_steps": config.logging_steps,
        "save_steps": config.save_steps,
        "save_total_limit": config.save_total_limit,
        "dataloader_num_workers": config.num_workers,
        "seed": config.seed,
        "data_seed": config.seed,
        "remove_unused_columns": False,
        "report_to": "none",
        **config.trainer,
    }
    return TrainingArguments(**values)

"""What the options of a training run are to ``transformers.TrainingArguments``."""

import dataclasses
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from mmalign.training.config import TrainConfig


def build_training_arguments(config: TrainConfig, *, output_dir: Path) -> TrainingArguments:
    """Translate the options.

    Args:
        config: The run's options.
        output_dir: Folder of the checkpoints.

    Raises:
        ValueError: If ``trainer`` names a field that TrainingArguments doesn't have, or launched processes did not find each other.
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
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.precision == "bfloat16",
        "fp16": config.precision == "float16",
        "activation_checkpointing": config.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if config.gradient_checkpointing else None,
        "logging_steps": config.logging_steps,
        "save_steps": config.save_steps,
        "save_total_limit": config.save_total_limit,
        "dataloader_num_workers": config.num_workers,
        "seed": config.seed,
        "data_seed": config.seed,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "remove_unused_columns": False,
        "report_to": "none",
        # Launched processes don't find each other on a machine without accelerator unless told that the CPU is meant.
        "use_cpu": not torch.accelerator.is_available(),
        **config.trainer,
    }
    arguments = TrainingArguments(**values)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.world_size != launched:
        raise ValueError(
            f"{launched} processes were launched and this one knows of {arguments.world_size}: each would train alone; "
            "see the launch configs in scripts/accelerate"
        )
    return arguments

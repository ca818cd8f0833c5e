"""The options of a training run. Nothing heavy is imported here, so that --help comes at once."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options that every method shares. Everything else of TrainingArguments is reached through ``trainer``."""

    learning_rate: float = field(metadata={"help": "peak learning rate"})
    batch_size: int = field(default=8, metadata={"help": "rows a device and micro-batch"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "micro-batches a step"})
    epochs: float = field(default=1.0, metadata={"help": "passes over the data; max-steps wins where it is set"})
    max_steps: int = field(default=-1, metadata={"help": "optimiser steps; -1 trains by epochs"})
    optimizer: Literal["adamw", "muon", "dct-adamw"] = field(
        default="adamw", metadata={"help": "muon learns faster from random weights; dct-adamw holds smaller moments"}
    )
    dct_rank: int = field(
        default=128, metadata={"help": "dct-adamw: columns of each matrix that have moments; smaller matrices take AdamW"}
    )
    dct_error_feedback: bool = field(
        default=False, metadata={"help": "dct-adamw: carry over what the columns leave out; a whole matrix more"}
    )
    schedule: Literal["cosine", "linear", "constant"] = field(default="cosine", metadata={"help": "learning rate after the warm-up"})
    warmup_ratio: float = field(default=0.03, metadata={"help": "share of the steps over which the learning rate rises"})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's weight decay"})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW's; 0.95 learns faster from random weights"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are scaled down to this norm"})
    precision: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "autocast type of the forward pass"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute activations: less memory, a third more time"})
    logging_steps: int = field(default=10, metadata={"help": "steps between logs"})
    save_steps: int = field(default=500, metadata={"help": "steps between checkpoints"})
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints kept"})
    num_workers: int = field(default=0, metadata={"help": "processes that load data"})
    seed: int = field(default=0, metadata={"help": "of the data order, dropout and new weights"})
    trainer: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "any other field of transformers.TrainingArguments (YAML only)"}
    )

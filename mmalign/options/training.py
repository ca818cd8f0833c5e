"""A training run: what it reads and writes, how it optimises, which parts of the model train."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import UserError
from mmalign.options.base import Options
from mmalign.options.evaluate import Name
from mmalign.options.precision import Attention, Dtype, PrecisionOptions, Quantization
from mmalign.options.rows import AnswerOptions, RowOptions

Frozen = Literal["vision_tower", "projector", "language_model", "attention_and_embeddings"]
"""attention_and_embeddings: all of the language model but its feed-forward networks, that is, but experts and routers."""

TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class TrainerOptions(Options):
    """Optimisation, checkpoints and logs; everything else of TrainingArguments is reached through ``trainer``."""

    learning_rate: float
    """peak learning rate"""
    batch_size: int = 8
    """rows per device and micro-batch"""
    gradient_accumulation_steps: int = 1
    """micro-batches per step"""
    epochs: float = 1.0
    """passes over the data; max-steps wins where it is set"""
    max_steps: int = -1
    """optimiser steps; -1 trains by epochs"""
    optimizer: Literal["adamw", "muon", "dct-adamw"] = "adamw"
    """muon learns faster from random weights; dct-adamw holds smaller moments"""
    dct_rank: int = 128
    """dct-adamw: columns of each matrix that have moments; smaller matrices take AdamW"""
    dct_error_feedback: bool = False
    """dct-adamw: carry over what the columns leave out; a whole matrix more"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """learning rate after the warm-up"""
    warmup_ratio: float = 0.03
    """share of the steps over which the learning rate rises"""
    weight_decay: float = 0.0
    """AdamW's weight decay"""
    adam_beta2: float = 0.999
    """AdamW's; 0.95 learns faster from random weights"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """autocast type of the forward pass; auto: bfloat16 on an accelerator that has it, else float32"""
    gradient_checkpointing: bool = False
    """recompute activations: less memory, a third more time"""
    logging_steps: int = 10
    """steps between logs"""
    log_to: list[TrackerName] = field(default_factory=list)
    """trackers that get the logs and sample answers beside the run's own files: tensorboard (in OUT/tensorboard), wandb, trackio"""
    log_project: str = "mmalign"
    """the project that wandb and trackio put the run into"""
    save_steps: int = 500
    """steps between checkpoints"""
    save_total_limit: int = 2
    """checkpoints kept"""
    num_workers: int | None = None
    """processes that load data; if not given, none on the CPU, and up to 4 for each accelerator where cores are free"""
    seed: int = 0
    """of the data order, dropout and new weights"""
    trainer: dict[str, Any] = field(default_factory=dict)
    """any other fields of transformers.TrainingArguments: '{use_cpu: true}'"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps", "save_total_limit", "dct_rank")
        if self.optimizer != "dct-adamw":
            self.refuse_idle("dct_rank", "dct_error_feedback", needed="--optimizer dct-adamw")
        self.refuse_below(0, "learning_rate", "weight_decay", "max_grad_norm", "num_workers")
        self.refuse_outside(0, 1, "warmup_ratio", "adam_beta2")
        self.refuse_zero("epochs")
        if self.max_steps < 1 and self.max_steps != -1:
            raise UserError(f"max_steps is {self.max_steps}; expected at least 1, or -1 to train by epochs")


@dataclass(frozen=True, kw_only=True)
class RunOptions(TrainerOptions, RowOptions):
    """What every training run reads and writes."""

    data: Path
    """parquet, json or jsonl file, or a folder of them"""
    out: Path
    """folder of the trained model; run the same command again to resume after a stop"""
    check_workers: int | None = None
    """processes that check the rows before the first step; one per core if not given, 0 for none"""
    license: str | None = None
    """licence named in the model card; that of the starting model if not given"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(0, "check_workers")


@dataclass(frozen=True, kw_only=True)
class LoraOptions(Options):
    """LoRA on linear layers of the language model, except the output head, and the projector beside it."""

    lora_rank: int = 0
    """LoRA on the language model; 0 trains full weights"""
    lora_alpha: int | None = None
    """LoRA scale is alpha / rank; twice the rank if not given"""
    lora_dropout: float = 0.0
    """dropout before the adapter"""
    lora_targets: list[str] = field(default_factory=list)
    """linear layers of the language model that get an adapter, such as q_proj v_proj; all if not given"""
    lora_ranks: dict[str, Any] = field(default_factory=dict)
    """ranks of some layers: '{down_proj: 64, q_proj: 8}'; lora-rank for the others"""
    rslora: bool = False
    """scale by alpha / sqrt(rank), so that large ranks learn as fast (rsLoRA, arXiv:2312.03732)"""
    dora: bool = False
    """train the length of each column beside its direction (DoRA, arXiv:2402.09353); slower"""
    lora_init: Path | None = None
    """folder of an adapter to begin with: of the same layers and ranks"""
    peft_config: Path | None = None
    """YAML or JSON file of other fields of peft.LoraConfig, such as alpha_pattern, layers_to_transform, modules_to_save"""
    train_projector: bool = False
    """train the projector beside the adapter, whole and saved with it"""

    def __post_init__(self) -> None:
        """Refuse what has no adapter to stand beside."""
        super().__post_init__()
        self.refuse_below(0, "lora_rank")
        self.refuse_below(1, "lora_alpha")
        self.refuse_outside(0, 1, "lora_dropout")
        names = ("lora_alpha", "lora_dropout", "lora_targets", "lora_ranks", "rslora", "dora", "lora_init", "peft_config")
        given = [name for name in names if getattr(self, name)]
        if given and self.lora_rank == 0:
            raise UserError(f"{given[0]} is for LoRA; set lora_rank, or leave it out")
        if self.train_projector and self.lora_rank == 0:
            raise UserError("train_projector is for LoRA; set lora_rank, or leave it out: full weights train the projector unless frozen")


@dataclass(frozen=True, kw_only=True)
class RouterOptions(Options):
    """Weights of a sparse model's router losses."""

    balance_weight: float | None = None
    """sparse models: load-balancing loss, summed over layers; 0.01 if not given"""
    router_z_weight: float = 0.0
    """sparse models: squared log-sum of router logits, summed over layers"""

    def __post_init__(self) -> None:
        """Refuse weights that would reward imbalance."""
        super().__post_init__()
        for name, value in (("balance_weight", self.balance_weight), ("router_z_weight", self.router_z_weight)):
            if value is not None and not value >= 0:
                raise UserError(f"{name} is {value}; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainEvalOptions(Options):
    """Benchmarks that score the model during training."""

    eval_benchmarks: list[Name] = field(default_factory=list)
    """benchmarks that the model in training is scored on, such as pope chair"""
    eval_data: list[Path] = field(default_factory=list)
    """their files, as mmalign evaluate --data takes them: one folder for all, or one for each"""
    eval_every: int = 500
    """steps between scores; the last step is always scored"""
    eval_options: dict[str, Any] = field(default_factory=dict)
    """other options of mmalign evaluate by benchmark: '{pope: {images: val2014, max_new_tokens: 16}}'"""


@dataclass(frozen=True, kw_only=True)
class MllmOptions(RunOptions, PrecisionOptions, AnswerOptions, LoraOptions, RouterOptions, TrainEvalOptions):
    """The multimodal LLM, and which parts of it train."""

    model: str
    """multimodal LLM: folder or hub id"""
    dtype: Dtype = "auto"
    """precision of the weights; auto: float32 where all train, and on the CPU; else bfloat16"""
    attention: Attention = "sdpa"
    """language model only; flex trains on GPUs"""
    freeze: list[Frozen] = field(default_factory=list)
    """parts that don't train: vision_tower, projector, language_model, attention_and_embeddings (all of it but FFNs)"""
    stage: Literal["init", "dense-to-dense", "dense-to-sparse", "preference"] | None = None
    """LLaVA-MoD's stage, which freezes what trains elsewhere (docs/distillation.md); instead of freeze"""
    projector_learning_rate: float | None = None
    """peak learning rate of the projector, under the same schedule; learning-rate if not given"""

    def __post_init__(self) -> None:
        """Refuse a learning rate that is none."""
        super().__post_init__()
        rate = self.projector_learning_rate
        if rate is not None and not rate > 0:
            raise UserError(f"projector_learning_rate is {rate}; expected a positive number; to keep it as it is, use --freeze projector")


@dataclass(frozen=True)
class ReferenceUpdate:
    """When a reference moves to the policy, and how far."""

    kind: Literal["every", "ema", "kl"]
    value: float
    """Steps, decay, or the mean token log-ratio that is not exceeded."""

    @classmethod
    def parse(cls, text: str) -> "ReferenceUpdate":
        """Read ``every:N``, ``ema:D`` or ``kl:K``.

        Raises:
            ValueError: If it is none of them.
        """
        kind, _, value = text.partition(":")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        number = number if math.isfinite(number) else -1.0
        fits = {"every": number >= 1 and number.is_integer(), "ema": 0 < number < 1, "kl": number > 0}.get(kind, False)
        if not fits:
            raise UserError(f"reference_update is {text!r}; expected none, every:N, ema:D or kl:K, such as every:100, ema:0.99 or kl:0.1")
        return cls(kind, number)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.kind}:{self.value:g}"


@dataclass(frozen=True, kw_only=True)
class ReferencedOptions(MllmOptions):
    """The frozen model that the trained one is held to."""

    reference: Literal["auto", "adapter-off", "copy", "model", "cached"] = "auto"
    """frozen model: the policy without its adapter, a copy, reference-model, or log-probs in the data; auto: reference-model where one
    is named, else adapter-off with LoRA, else a copy
    """
    reference_model: str | None = None
    """another model as the reference, or the one that cached log-probs are of: folder or hub id"""
    reference_quantization: Quantization | None = None
    """hold a reference of its own in 4 bits, or not; as --quantization if not given"""
    reference_update: str = "none"
    """let the reference follow the policy: every:N steps, ema:D of the weights, kl:K where the step's mean token log-ratio is above K"""

    def __post_init__(self) -> None:
        """Refuse a model beside a kind of reference that has none of its own, and a kind that lacks its model."""
        super().__post_init__()
        if self.reference == "model" and self.reference_model is None:
            raise UserError("--reference model needs the model: name it with --reference-model")
        if self.reference in ("adapter-off", "copy") and self.reference_model is not None:
            raise UserError(f"--reference {self.reference} and --reference-model exclude each other; leave one out")
        if self.moving is not None:
            self._check_moving()

    @property
    def moving(self) -> ReferenceUpdate | None:
        """When the reference moves; None where it stays."""
        return None if self.reference_update == "none" else ReferenceUpdate.parse(self.reference_update)

    def _check_moving(self) -> None:
        still = self.reference if self.reference in ("adapter-off", "cached") else "model" if self.reference_model is not None else None
        if still is not None:
            raise UserError(f"--reference-update {self.reference_update} moves weights of the policy's own; leave --reference {still} out")
        if self.reference_quantization is not None:
            raise UserError(f"--reference-update {self.reference_update} needs the policy's own form; leave --reference-quantization out")
